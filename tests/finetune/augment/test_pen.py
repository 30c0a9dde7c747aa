"""Drawings as paths of a pen: discs along them, lines in the middle of strokes, and back again."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune.augment import pen
from finetune.augment.pen import skeletons, stamp
from finetune.augment.resizing import Resizing
from finetune.canvas import PEN_RADIUS
from finetune.data.synthetic import draw_rune

SIZE = 105
ALL = torch.ones(SIZE, dtype=torch.bool)
# Rows and columns that a resize looks at: all, about half and about a quarter of them.
RESIZES = ("antialiased", "bilinear", "nearest")


class PenPaths(NamedTuple):
    """What `pen.trace` finds."""

    points: Tensor
    present: Tensor
    error: float


def trace(bitmaps: Tensor, seen: Tensor) -> PenPaths:
    return PenPaths(*pen.trace(bitmaps, seen, PEN_RADIUS))


def seen_by(resize: str) -> Tensor:
    return Resizing(resize).seen()


def distances(points: Tensor, size: int = SIZE) -> Tensor:
    """From each pixel's centre to the nearest of ``points`` (P, 2), (size, size)."""
    i = torch.arange(size, dtype=torch.float64)
    y, x = torch.meshgrid(i, i, indexing="ij")
    x_apart, y_apart = (a[..., None] - b for a, b in zip((x, y), points.double().T, strict=True))
    far = torch.full((size, size, 1), torch.inf, dtype=torch.float64)
    return torch.cat([far, torch.hypot(x_apart, y_apart)], -1).amin(-1)


def inked(points: Tensor, radius: float = PEN_RADIUS) -> Tensor:
    """What a round pen draws along ``points`` (P, 2), pixel by pixel: (SIZE, SIZE)."""
    return (distances(points) <= radius).float()


# Discs


def stamped(points: Tensor, radius: float, seen: Tensor) -> Tensor:
    """One drawing of points (P, 2) that are all there, (k, k)."""
    present = torch.ones(1, len(points), dtype=torch.bool)
    return stamp(points[None], present, radius, seen)[0]


@st.composite
def pens(draw: st.DrawFn) -> tuple[Tensor, Tensor, float, Tensor]:
    """Points in and around a small canvas, which of them there are, a radius, and what is seen."""
    b, p, size = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 24))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    points = torch.rand(b, p, 2, generator=g) * (size + 20) - 10
    if draw(st.booleans()):
        points = (2 * points).round() / 2  # discs that end on centres of pixels
    present = torch.rand(b, p, generator=g) < draw(st.sampled_from((0.5, 1.0)))
    radius = draw(st.floats(0, 7))
    seen = torch.rand(size, generator=g) < draw(st.sampled_from((0.3, 0.7, 1.0)))
    return points, present, radius, seen


@settings(max_examples=300)
@given(pens())
def test_stamps_are_discs(pen: tuple[Tensor, Tensor, float, Tensor]) -> None:
    points, present, radius, seen = pen
    ink = stamp(points, present, radius, seen)
    k = int(seen.sum())
    assert ink.shape == (len(points), k, k) and ink.dtype == torch.float32
    assert ((ink == 0) | (ink == 1)).all()
    for i in range(len(points)):
        distance = distances(points[i][present[i]], len(seen))[seen][:, seen]
        beyond = distance - radius
        sure = beyond.abs() > 1e-4  # numbers have seven digits
        assert torch.equal(ink[i][sure] > 0.5, (beyond <= 0)[sure])


def test_the_rim_belongs_to_the_disc() -> None:
    """2.5 reaches two pixels from a centre, and three from between two, exactly."""
    between = stamped(torch.tensor([[4.5, 4.0]]), 2.5, ALL[:9])
    assert between[4].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0]
    on = stamped(torch.tensor([[4.0, 4.0]]), 2.5, ALL[:9])
    assert on[4].tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("place", [(-2.0, 4.0), (10.0, 4.0), (4.0, -2.0), (4.0, 10.0)])
def test_a_disc_that_sticks_out_is_cut_and_does_not_come_in_elsewhere(
    place: tuple[float, float],
) -> None:
    point = torch.tensor([place])
    assert torch.equal(stamped(point, 3.0, ALL[:9]), (distances(point, 9) <= 3).float())
    assert stamped(point, 3.0, ALL[:9]).sum() > 0
    assert stamped(point, 1.5, ALL[:9]).sum() == 0


def test_absent_points_and_unseen_lines_leave_nothing() -> None:
    points = torch.tensor([[[4.0, 4.0], [9.0, 9.0]]])
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    assert stamp(points, nothing, 2.5, ALL[:12]).sum() == 0
    assert stamped(points[0], 2.5, ~ALL[:12]).shape == (0, 0)
    none = torch.zeros(0, 2, 2), torch.zeros(0, 2, dtype=torch.bool), 2.5
    assert stamp(*none, ALL[:12]).shape == (0, 12, 12)


# Lines in the middle


def components(ink: Tensor) -> Tensor:
    """Boolean (H, W) to labels (H, W), 0 outside: neighbours, diagonal ones too, share one."""
    label = torch.arange(1.0, ink.numel() + 1).view(ink.shape) * ink
    while True:
        spread = F.max_pool2d(label[None, None], 3, 1, 1)[0, 0] * ink
        if torch.equal(spread, label):
            return label
        label = spread


def blobs(seed: int, n: int = 4, size: int = 24) -> Tensor:
    """Smooth random ink (n, size, size)."""
    noise = torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(seed))
    for _ in range(2):
        noise = F.avg_pool2d(noise, 3, 1, 1)
    return noise[:, 0] > 0.15


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_a_skeleton_lies_in_the_ink_and_has_its_pieces(seed: int) -> None:
    ink = blobs(seed)
    lines = skeletons(ink)
    assert lines.shape == ink.shape and lines.dtype == torch.bool
    assert not (lines & ~ink).any()
    for own, line in zip(ink, lines, strict=True):
        pieces, parts = components(own), components(line)
        labels = pieces[line].unique()
        assert torch.equal(labels, pieces[own].unique()), "none is lost"
        assert len(parts[line].unique()) == len(labels), "none is broken"


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_each_drawing_has_its_own_skeleton_and_it_stays(seed: int) -> None:
    ink = blobs(seed)
    lines = skeletons(ink)
    assert torch.equal(skeletons(ink[1:2]), lines[1:2])
    assert torch.equal(skeletons(lines), lines)


def test_thin_lines_stay() -> None:
    line = torch.zeros(3, 15, 15, dtype=torch.bool)
    line[0, 7, 2:13] = True
    line[1, 2:13, 7] = True
    line[2] = torch.eye(15, dtype=torch.bool)
    assert torch.equal(skeletons(line), line)


@pytest.mark.parametrize("width", [3, 5, 7])
@pytest.mark.parametrize("upright", [False, True])
def test_a_bar_becomes_its_middle_line(width: int, upright: bool) -> None:
    ink = torch.zeros(40, 40, dtype=torch.bool)
    ink[20 - width // 2 : 21 + width // 2, 4:36] = True
    line = skeletons((ink.T if upright else ink)[None])[0]
    line = line.T if upright else line
    assert line.any(1).nonzero().flatten().tolist() == [20]
    columns = line.any(0).nonzero().flatten()
    assert columns.min() <= 4 + width and columns.max() >= 35 - width
    assert len(columns) == columns.max() - columns.min() + 1


def test_strokes_become_lines_one_pixel_wide() -> None:
    ink = draw_rune("rad", 4, seed=0) > 0
    lines = skeletons(ink).float()
    solid = F.avg_pool2d(lines[:, None], 2, 1) == 1  # blocks of 2 x 2
    assert solid.sum() <= 4  # where strokes meet, at most
    assert lines.sum() < 1.2 * ink.sum() / (2 * PEN_RADIUS)


def test_ink_at_the_border_does_not_come_in_on_the_other_side() -> None:
    ink = torch.zeros(1, 20, 20, dtype=torch.bool)
    ink[0, :, :5] = True
    line = skeletons(ink)
    assert not (line & ~ink).any() and line.any()
    assert line[0].any(0).nonzero().flatten().tolist() == [2]


def test_no_ink_has_no_skeleton() -> None:
    assert not skeletons(torch.zeros(2, 9, 9, dtype=torch.bool)).any()


@settings(max_examples=50)
@given(st.tuples(st.floats(9, 10), st.floats(9, 10)))
@example((9.5, 9.5))
@example((9.3, 9.6))
def test_a_dot_of_the_pen_leaves_a_point_in_its_middle(centre: tuple[float, float]) -> None:
    dot = distances(torch.tensor([centre]), 20) <= PEN_RADIUS
    at = skeletons(dot[None])[0].nonzero().double()
    assert 1 <= len(at) <= 4
    assert (at.mean(0) - torch.tensor(centre).flip(0)).abs().max() <= 1


# From strokes to paths


def polyline(*corners: tuple[float, float]) -> Tensor:
    """Points (P, 2) along straight lines, a quarter of a pixel apart."""
    parts = []
    for a, b in pairwise(torch.tensor(corners, dtype=torch.float32)):
        s = torch.linspace(0, 1, math.ceil(4 * torch.dist(a, b).item()) + 1)[:, None]
        parts.append(a + s * (b - a))
    return torch.cat(parts)


def arc(centre: tuple[float, float], radius: float, start_deg: float, end_deg: float) -> Tensor:
    angle = torch.deg2rad(torch.linspace(start_deg, end_deg, 600))
    return torch.tensor(centre) + radius * torch.stack([angle.cos(), angle.sin()], 1)


STROKES = {
    "upright": polyline((50.2, 12.0), (50.2, 91.0)),
    "slanting": polyline((30.3, 12.2), (71.6, 88.1)),
    "diagonal": polyline((20.0, 20.0), (80.0, 80.0)),
    "zigzag": polyline((30.0, 10.0), (70.0, 40.0), (35.0, 60.0), (75.0, 95.0)),
    "curved": arc((52.3, 50.6), 30.0, 20, 320),
    "closed": arc((52.3, 50.6), 20.0, 0, 360),
    "crossing": torch.cat([polyline((20, 50), (85, 55)), polyline((50, 10), (55, 95))]),
    "two": torch.cat([polyline((20.3, 20), (20.3, 80)), polyline((60, 30), (75, 70))]),
}
# Where fewer pixels are seen, the path is less certain.
NEAR_PX = {"antialiased": 0.75, "bilinear": 1.3, "nearest": 1.9}


def path(traced: PenPaths, i: int = 0) -> Tensor:
    """Of drawing i, its own points (P_i, 2)."""
    return traced.points[i][traced.present[i]]


def wrong_bits(traced: PenPaths, bitmaps: Tensor, seen: Tensor) -> Tensor:
    """Share of bits that the pen draws otherwise, relative to the ink, for each drawing."""
    drawn = stamp(traced.points, traced.present, PEN_RADIUS, seen)
    bits = bitmaps[:, seen][:, :, seen]
    return (drawn != bits).sum((1, 2)) / bits.sum((1, 2)).clamp(min=1)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("name", STROKES)
def test_the_path_of_a_stroke_is_found(name: str, resize: str) -> None:
    true, seen = STROKES[name], seen_by(resize)
    bitmaps = inked(true)[None]
    traced = trace(bitmaps, seen)
    assert wrong_bits(traced, bitmaps, seen).item() < 0.03
    assert traced.error < 0.03
    apart = torch.cdist(path(traced).double(), true.double())
    assert apart.amin(1).max() < NEAR_PX[resize], "no point is off the path"
    assert apart.amin(1).mean() < 0.6
    end_px = 3 if resize == "nearest" else 1.7
    assert apart.amin(0).max() < end_px, "nothing of the path is left out"


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("rune", ["rad", "ing", "is"])
def test_drawn_runes_are_drawn_again(rune: str, resize: str) -> None:
    bitmaps, seen = draw_rune(rune, 4, seed=0).float(), seen_by(resize)
    traced = trace(bitmaps, seen)
    assert wrong_bits(traced, bitmaps, seen).max() < 0.03
    assert traced.error < 0.03


@pytest.mark.parametrize("rune", ["rad", "ing", "is"])
def test_bits_that_are_not_seen_do_not_count(rune: str) -> None:
    """Unseen ones are those of a drawing shifted by a pixel: beyond the start, that is nothing."""
    bitmaps = draw_rune(rune, 2, seed=0).float()
    seen = seen_by("bilinear")
    mixed = torch.where(seen[:, None] & seen, bitmaps, bitmaps.roll(1, 2))
    assert (mixed != bitmaps).sum() > 0.1 * bitmaps.sum()
    assert wrong_bits(trace(mixed, seen), bitmaps, seen).max() < 0.03
    assert wrong_bits(trace(mixed, ALL), bitmaps, seen).max() > 0.04, "which they did if seen"


def test_the_error_is_the_share_of_wrong_bits() -> None:
    """Also of strokes that a pen of another width drew; the worst drawing's counts."""
    bitmaps = torch.stack([inked(STROKES["zigzag"], 2.0), inked(STROKES["curved"], 2.0)])
    traced = trace(bitmaps, ALL)
    wrong = wrong_bits(traced, bitmaps, ALL)
    assert wrong.min() < 0.95 * wrong.max()
    assert traced.error == pytest.approx(wrong.max().item())


@pytest.mark.parametrize("radius", [1.0, 1.7, 8.0, 12.0])
def test_strokes_of_another_width_are_none_of_the_pens(radius: float) -> None:
    bitmaps = torch.stack([inked(STROKES[name], radius) for name in ("zigzag", "curved")])
    assert trace(bitmaps, ALL).error > 0.1


def test_drawings_of_different_lengths_share_one_tensor() -> None:
    """Each has its own points, whatever is beside it."""
    bitmaps = torch.stack([inked(STROKES[name]) for name in ("upright", "zigzag", "crossing")])
    together = trace(bitmaps, ALL)
    n, most, _ = together.points.shape
    assert n == 3 and together.present.shape == (n, most)
    assert together.points.isfinite().all()
    counts = together.present.sum(1)
    assert len(counts.unique()) == 3 and counts.max() == most - 1
    for i, bitmap in enumerate(bitmaps):
        alone = trace(bitmap[None], ALL)
        assert counts[i] == alone.present.sum()
        torch.testing.assert_close(path(together, i), path(alone), rtol=0, atol=0.05)


def test_no_ink_has_no_path() -> None:
    blank = torch.zeros(2, SIZE, SIZE)
    traced = trace(blank, ALL)
    assert not traced.present.any() and traced.error == 0
    assert traced.points.isfinite().all()
    assert torch.equal(stamp(traced.points, traced.present, 2.5, ALL), blank)


def test_a_blank_drawing_beside_others_stays_blank() -> None:
    bitmaps = torch.stack([torch.zeros(SIZE, SIZE), inked(STROKES["slanting"])])
    traced = trace(bitmaps, ALL)
    assert traced.present.any(1).tolist() == [False, True]
    assert wrong_bits(traced, bitmaps, ALL).max() < 0.03


def test_ink_up_to_the_border_is_traced() -> None:
    bitmaps = inked(polyline((-3.0, 50.0), (108.0, 30.0)))[None]
    traced = trace(bitmaps, ALL)
    assert wrong_bits(traced, bitmaps, ALL).max() < 0.03


def test_every_dot_is_traced() -> None:
    dots = torch.tensor([[20.0, 20.0], [50.5, 50.5], [80.3, 30.6], [30.2, 80.7]])
    bitmaps = inked(dots)[None]
    traced = trace(bitmaps, ALL)
    assert torch.cdist(dots, path(traced)).amin(1).max() < 1
    assert wrong_bits(traced, bitmaps, ALL).item() < 0.1


def test_tracing_is_exact_again_and_leaves_random_numbers_and_gradients_alone() -> None:
    bitmaps = draw_rune("ur", 2, seed=0).float()
    given_bitmaps, state = bitmaps.clone(), torch.get_rng_state()
    with torch.no_grad():
        first = trace(bitmaps, ALL)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    second = trace(bitmaps, ALL)
    assert torch.equal(first.points, second.points)
    assert torch.equal(first.present, second.present) and first.error == second.error
    assert not second.points.requires_grad
    assert torch.equal(bitmaps, given_bitmaps)
