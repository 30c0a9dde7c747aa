"""What a call is given: put right beyond doubt, or refused with a word on what to give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from finetune.canvas import RESIZES, Resize
from finetune.data.drawings import read_drawings
from finetune.data.runes import DrawingDataset, resize_bitmaps
from finetune.data.synthetic import draw_rune

DRAWINGS = resize_bitmaps(draw_rune("ing", 10, seed=0), "bilinear")


def as_bytes(images: Tensor) -> Tensor:
    return (255 * images).round().to(torch.uint8)


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(as_bytes(image)[0].numpy())


CONTAINERS: dict[str, Any] = {
    "dataset": lambda x: DrawingDataset(x),
    "tensor": lambda x: x,
    "array": lambda x: x.numpy(),
    "flat": lambda x: x.flatten(1),
    "two-dimensional": lambda x: x[:, 0],
    "nested-lists": lambda x: [(image.tolist(), 10) for image in x],
    "generator": lambda x: ((image, 10) for image in x),
    "double": lambda x: x.double(),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_of_every_kind(container: str) -> None:
    assert torch.equal(read_drawings(CONTAINERS[container](DRAWINGS)), DRAWINGS)


RANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "bytes": as_bytes,
    "float-bytes": lambda x: 255 * x,
    "long-bytes": lambda x: as_bytes(x).long(),
    "minus-one-to-one": lambda x: 2 * x - 1,
    "centred": lambda x: x - 0.5,
    "as-mnist": lambda x: (x - 0.1307) / 0.3081,
}


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("name", [*RANGES, "unit"])
def test_ranges_and_polarities_without_doubt_are_put_right(
    name: str, inverted: bool, resize: Resize
) -> None:
    drawings = resize_bitmaps(draw_rune("ing", 10, seed=0), resize)
    given_images = RANGES.get(name, lambda x: x)(1 - drawings if inverted else drawings)
    torch.testing.assert_close(read_drawings(given_images), drawings, rtol=0, atol=0.51 / 255)


def test_a_blank_drawing_among_bytes_stays_blank() -> None:
    images = as_bytes(DRAWINGS)
    images[3] = 0
    assert read_drawings(images)[3].max() == 0


@pytest.mark.parametrize("grey", [0.0, 0.5])
def test_drawings_of_one_colour_and_noise_are_let_through(grey: float) -> None:
    images = torch.full((2, 1, 28, 28), grey)
    assert torch.equal(read_drawings(images), images)
    noise = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read_drawings(noise), noise)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused_by_its_drawing(value: float) -> None:
    images = DRAWINGS.clone()
    images[4, 0, 3, 5] = value
    with pytest.raises(ValueError, match=r"drawing 4 lies in \[.*(nan|inf).*\]; give .*\[0, 1\]"):
        read_drawings(DrawingDataset(images))


@pytest.mark.parametrize("change", [lambda x: 3 * x, lambda x: x - 0.4, lambda x: 700 * x])
def test_a_range_in_doubt_is_refused_by_its_drawing(change: Callable[[Tensor], Tensor]) -> None:
    images = change(DRAWINGS)
    with pytest.raises(ValueError, match=r"drawing 0 lies in \[.*\]; give images of 1x28x28"):
        read_drawings(images)


def test_one_drawing_of_another_range_or_polarity_is_refused() -> None:
    images = DRAWINGS.clone()
    images[7] = 5 * images[7]
    with pytest.raises(ValueError, match=r"drawing 7 lies in \[0, 5\]; give"):
        read_drawings(images)
    images = DRAWINGS.clone()
    images[2] = 1 - images[2]
    with pytest.raises(ValueError, match=r"drawing 2 is black on white"):
        read_drawings(images)


@pytest.mark.parametrize(
    "shape", [(1, 27, 28), (3, 28, 28), (1, 105, 105), (), (1, 14, 56), (2, 3, 28, 28)]
)
def test_another_shape_is_refused_by_its_drawing(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        read_drawings([(DRAWINGS[0], 10), (torch.zeros(shape), 10)])
    assert f"drawing 1 is {shape}" in str(caught.value) and "give images of 1x28x28" in str(
        caught.value
    )


@pytest.mark.parametrize(
    "dataset",
    [
        [],
        [({"image": DRAWINGS[0]}, 10)],
        DataLoader(DrawingDataset(DRAWINGS), batch_size=4),
        [as_pil(DRAWINGS[0])],
        [("a.png", 10)],
        [None],
        {"images": DRAWINGS},
        "drawings.pt",
        7,
        [torch.zeros(1, 28, 28, dtype=torch.complex64)],
        (DRAWINGS, torch.zeros(10)),
    ],
    ids=[
        "none",
        "dict",
        "loader",
        "pil",
        "path",
        "None",
        "mapping",
        "text",
        "int",
        "complex",
        "pair-of-tensors",
    ],
)
def test_what_holds_no_drawings_is_refused_in_one_sentence(dataset: Any) -> None:
    with pytest.raises(ValueError) as caught:
        read_drawings(dataset)
    assert "\n" not in str(caught.value)


@settings(max_examples=60)
@given(low=st.floats(-3, 3), high=st.floats(-3, 300), n=st.integers(1, 10), inverted=st.booleans())
def test_any_range_is_put_right_let_through_or_refused(
    low: float, high: float, n: int, inverted: bool
) -> None:
    """Never silently another: what comes out lies about [0, 1], with dark paper."""
    x = (1 - DRAWINGS if inverted else DRAWINGS)[:n]
    images = low + (high - low) * x
    try:
        found = read_drawings(images)
    except ValueError:
        return
    assert found.min() >= -0.3 and found.max() <= 1.3
    assert (found > 0.5).float().mean() <= 0.6


def test_the_call_leaves_what_it_is_given_alone() -> None:
    images = (2 * DRAWINGS - 1).numpy()
    before = images.copy()
    read_drawings(images)
    assert np.array_equal(images, before)
