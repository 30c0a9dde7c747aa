"""What `finetune_model` is given, as one tensor of white strokes on black in [0, 1].

A network that learns drawings of another range or polarity is silently useless.  So whatever is
beyond doubt is put right, and whatever is not is refused with a word on what to give.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..canvas import IMAGE_SIZE

# Names under which datasets of dictionaries keep their images.
_IMAGE_KEYS = ("image", "img", "images", "pixel_values", "x")
_OVERSHOOT = 0.3  # resizing with negative lobes leaves [0, 1] by less
# Paper and ink in other ranges: bytes; mean and deviation of a half; centred; MNIST's own.
_RANGES = ((0.0, 255.0), (-1.0, 1.0), (-0.5, 0.5), (-0.1307 / 0.3081, (1 - 0.1307) / 0.3081))
_LIGHT, _DARK = 0.6, 0.4  # shares of light pixels: strokes cover less than the latter
_GIVE = "give images of 1x28x28 in [0, 1], white strokes on black"


def read_drawings(dataset: Any) -> Tensor:
    """The images of a dataset, (n, 1, 28, 28) float32 in [0, 1], white on black.

    Bytes, [-1, 1], [-0.5, 0.5] and MNIST's normalisation become [0, 1], and black on white is
    inverted, where there is no doubt.

    Args:
        dataset: pairs (image, label), bare images or dictionaries, by index or as they come: a
            dataset, list, tensor, array, loader of batches or generator.  An image is a tensor,
            an array, nested lists or a PIL image; labels are ignored.

    Raises:
        ValueError: no image, one of another shape, NaN, or a range or polarity in doubt.  The
            message names the drawing and what to give.
    """
    # By length and index: a dataset need not end an iteration over it properly.
    by_index = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, (dict, str)) or not (by_index or hasattr(dataset, "__iter__")):
        raise ValueError(
            f"the dataset is a {type(dataset).__name__}; {_GIVE}, or pairs with labels"
        )
    items = (dataset[i] for i in range(len(dataset))) if by_index else dataset
    images: list[Tensor] = []
    for item in items:
        images += _read_item(item, len(images))
    if not images:
        raise ValueError("the dataset is empty; at least one drawing is needed")
    return _white_on_black(_from_range(torch.stack(images)))


def _read_item(item: Any, i: int) -> list[Tensor]:
    """The images of an item of a dataset, one or a loader's batch, (1, 28, 28) each.

    Args:
        i: how many drawings came before.
    """
    image = item[0] if isinstance(item, (tuple, list)) else item
    if isinstance(image, dict):
        keys = [key for key in _IMAGE_KEYS if key in image]
        if not keys:
            raise ValueError(f"drawing {i} is a dictionary without 'image'; {_GIVE}")
        image = image[keys[0]]
    if hasattr(image, "tobytes") and hasattr(image, "convert"):  # PIL's
        width, height = image.size
        image = torch.tensor(list(image.convert("L").tobytes()), dtype=torch.uint8)
        image = image.view(1, height, width)
    try:
        tensor = torch.as_tensor(image, device="cpu")  # whatever the default device is
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"drawing {i} is a {type(image).__name__}; {_GIVE}") from error
    shape, n_pixels = tuple(tensor.shape), IMAGE_SIZE**2
    batch = tensor.ndim == 4 and shape[1:] == (1, IMAGE_SIZE, IMAGE_SIZE)
    whole = shape[-1:] == (n_pixels,) or shape[-2:] == (IMAGE_SIZE, IMAGE_SIZE)
    if (not batch and (tensor.numel() != n_pixels or not whole)) or tensor.is_complex():
        expected = (1, IMAGE_SIZE, IMAGE_SIZE)
        raise ValueError(f"drawing {i} is {shape}; expected {expected}: {_GIVE}")
    pixels = tensor.detach().to(torch.float32)
    if tensor.dtype == torch.uint8 and pixels.numel() and pixels.max() > 1:
        pixels = pixels / 255
    return list(pixels.reshape(-1, 1, IMAGE_SIZE, IMAGE_SIZE))


def _from_range(images: Tensor) -> Tensor:
    """Images of any of the known ranges in [0, 1]; all of them are in one."""
    flat = images.flatten(1)
    for i, drawing in enumerate(flat):
        if not drawing.isfinite().all():
            raise ValueError(f"drawing {i} holds NaN or infinity; {_GIVE}")
    if (flat >= -_OVERSHOOT).all() and (flat <= 1 + _OVERSHOOT).all():
        return images
    paper = flat.mode(1).values  # the commonest value of each drawing
    for low, high in _RANGES:
        near = 1e-3 * (high - low)
        of_paper = ((paper - low).abs() < near) | ((paper - high).abs() < near)
        within = (flat > low - near).all() and (flat < high + near).all()
        if of_paper.all() and within and flat.max() - flat.min() > (high - low) / 2:
            return (images - low) / (high - low)
    outside = (flat.amin(1) < -_OVERSHOOT) | (flat.amax(1) > 1 + _OVERSHOOT)
    i = int(outside.nonzero()[0])
    found = f"[{flat[i].min().item():.4g}, {flat[i].max().item():.4g}]"
    raise ValueError(f"drawing {i} lies in {found}; {_GIVE}")


def _white_on_black(images: Tensor) -> Tensor:
    """The same if most of every image is dark, inverted if most of every image is light."""
    light = (images > 0.5).flatten(1).float().mean(1)
    if (light > _LIGHT).all():
        return 1 - images
    if (light > _LIGHT).any() and (light < _DARK).any():
        i = int((light > _LIGHT).nonzero()[0])
        found = f"[{images[i].min().item():.4g}, {images[i].max().item():.4g}]"
        raise ValueError(f"drawing {i}, in {found}, is black on white and others are not; {_GIVE}")
    return images
