"""The augmentation mix: what a warp may change, and the grey values that it must not."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.augment import mix as augment
from finetune.augment.bitmaps import rebuild
from finetune.augment.mix import Augmenter
from finetune.augment.resizing import Resizing
from finetune.data.runes import RESIZES, Resize, resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.recipe import Recipe
from tests.settings import STILL

RUNES = ("rad", "is")  # many strokes, and one
RENDERS = ("pen", "direct")
EDGES = torch.tensor([0, 0.02, 0.2, 0.4, 0.6, 0.8, 0.98, 1.0001])


def recipe(**ranges: Any) -> Recipe:
    """A recipe in which nothing moves but what is named."""
    return Recipe(**{**STILL, **ranges})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


Augment = Callable[..., tuple[Tensor, Augmenter]]


@pytest.fixture
def augment_strokes(monkeypatch: pytest.MonkeyPatch) -> Augment:
    """Bitmaps (n, 105, 105) as drawings, and an augmenter that is told those true strokes.

    Rebuilding strokes has tests of its own, costs time and is never perfect.
    """

    def make(
        bitmaps: Tensor, recipe: Recipe, *, resize: Resize = "antialiased", seed: int = 0
    ) -> tuple[Tensor, Augmenter]:
        rebuilt = bitmaps.float(), Resizing(resize), 0.0
        monkeypatch.setattr(augment, "rebuild", lambda images: rebuilt)
        drawings = resize_bitmaps(bitmaps, resize)
        return drawings, Augmenter(drawings, recipe, generator(seed))

    return make


@pytest.fixture
def augment_drawn(augment_strokes: Augment) -> Augment:
    """The same for drawn runes."""

    def make(rune: str, recipe: Recipe, *, n: int = 1, **more: Any) -> tuple[Tensor, Augmenter]:
        return augment_strokes(draw_rune(rune, n, seed=0), recipe, **more)

    return make


# Grey values


@dataclass(frozen=True)
class Strokes:
    """Drawings, what they are taken for, and how much ink they have wherever they lie."""

    drawings: Tensor
    rebuilt: tuple[Tensor, Resizing, float]
    mean: float  # of the grey values and of their squares, over all places
    mean_square: float


@pytest.fixture(
    scope="session",
    params=[(rune, resize) for rune in RUNES for resize in RESIZES],
    ids=lambda p: "-".join(p),
)
def strokes(request: pytest.FixtureRequest) -> Strokes:
    rune, resize = request.param
    bitmaps = draw_rune(rune, 4, seed=0)
    drawings = resize_bitmaps(bitmaps, resize)
    # Fifteen pixels of the bitmap are four of the drawing.  One upright stroke may by chance lie
    # where a resize that skips pixels sees more or less of it.
    moved = [resize_bitmaps(bitmaps.roll((i, i), (1, 2)), resize) for i in range(-7, 8)]
    greys = torch.stack(moved)
    mean, mean_square = greys.mean().item(), greys.square().mean().item()
    return Strokes(drawings, rebuild(drawings[:, 0]), mean, mean_square)


def total_variation(a: Tensor, b: Tensor) -> float:
    """Between the histograms of all grey values, in [0, 1]."""
    p, q = (torch.histogram(x.flatten(), EDGES).hist / x.numel() for x in (a, b))
    return (p - q).abs().sum().item() / 2


def test_grey_values_stay_as_they_were(strokes: Strokes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "rebuild", lambda images: strokes.rebuilt)
    draw = Augmenter(strokes.drawings, Recipe(), generator())
    assert draw.by_pen
    drawn = draw(400)
    assert total_variation(drawn, strokes.drawings) < 0.02
    assert drawn.mean().item() == pytest.approx(strokes.mean, rel=0.05)
    assert drawn.square().mean().item() == pytest.approx(strokes.mean_square, rel=0.08)
    if set(strokes.drawings.unique().tolist()) == {0.0, 1.0}:
        assert set(drawn.unique().tolist()) == {0.0, 1.0}, "nearest stays two-valued"


@pytest.mark.parametrize("rune", RUNES)
def test_warping_the_image_itself_blurs_the_strokes(rune: str) -> None:
    """What the test above guards against, and that it would see it."""
    drawings = resize_bitmaps(draw_rune(rune, 4, seed=0), "bilinear")
    drawn = Augmenter(drawings, Recipe(render="direct"), generator())(400)
    assert total_variation(drawn, drawings) > 0.04
    assert drawn.square().mean() < 0.85 * drawings.square().mean()


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("render", RENDERS)
def test_images_are_grey_and_of_their_shape(
    augment_drawn: Augment, resize: Resize, render: str
) -> None:
    wild = Recipe(render=render, scale=0.8, shear=1, shift_px=10, elastic_px=3)
    _, draw = augment_drawn("rad", wild, n=3, resize=resize)
    for n in (1, 5, 64):
        images = draw(n)
        assert images.shape == (n, 1, 28, 28) and images.dtype == torch.float32
        assert images.min() >= 0 and images.max() <= 1 + 1e-6


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("render", RENDERS)
def test_still_drawings_stay_as_they_are(
    augment_drawn: Augment, resize: Resize, render: str
) -> None:
    drawings, draw = augment_drawn("beorc", recipe(render=render), n=4, resize=resize)
    images = draw(40)
    errors = (images[:, None] - drawings[None]).square().mean((2, 3, 4))  # (40, 4)
    assert errors.min(1).values.max() < (2e-3 if resize == "nearest" else 1e-3)
    off = (images - drawings[errors.argmin(1)]).abs() > 0.3
    assert off.sum((1, 2, 3)).max() <= 2, "pixels of a drawing"
    assert set(errors.argmin(1).tolist()) == {0, 1, 2, 3}, "each drawing has its turn"


# Randomness


@pytest.mark.parametrize("render", RENDERS)
def test_drawings_are_fixed_by_the_seed_alone(augment_drawn: Augment, render: str) -> None:
    state = torch.get_rng_state()
    chosen = Recipe(render=render)
    batches = []
    for seed in (0, 0, 1):
        _, draw = augment_drawn("rad", chosen, n=3, seed=seed)
        batches.append([draw(8), draw(8)])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(batches[0], batches[1], strict=True))
    assert not torch.equal(batches[0][0], batches[2][0])
    assert not torch.equal(batches[0][0], batches[0][1]), "batches go on"


# Geometry, as maps of coordinates


def maps(draw: Augmenter, n: int = 200) -> tuple[Tensor, Tensor]:
    """The linear part (n, 2, 2) and the shift (n, 2) of warps that are affine, to the source."""
    grid = draw.draw_warp(torch.zeros(n, dtype=torch.long)).double()
    k = grid.shape[1]
    p = (torch.arange(k, dtype=torch.float64) + 0.5) * 2 / k - 1
    y, x = torch.meshgrid(p, p, indexing="ij")
    design = torch.stack([x, y, torch.ones_like(x)], -1).view(1, -1, 3)
    fit = torch.linalg.lstsq(design.expand(n, -1, -1), grid.view(n, -1, 2)).solution  # (n, 3, 2)
    residual = design @ fit - grid.view(n, -1, 2)
    assert residual.abs().max() < 1e-5
    return fit[:, :2].transpose(1, 2), fit[:, 2]


def direct(**ranges: Any) -> Augmenter:
    return Augmenter(torch.zeros(1, 1, 28, 28), recipe(render="direct", **ranges), generator())


def assert_covers(values: Tensor, low: float, high: float) -> None:
    """All within [low, high], and nearly to both ends."""
    slack = 1e-4 * (high - low)
    assert low - slack <= values.min() < low + 0.1 * (high - low)
    assert high + slack >= values.max() > high - 0.1 * (high - low)


def to_canvas(points: Tensor) -> Tensor:
    """Pixels of the bitmap to a canvas that spans [-1, 1]."""
    return (points.double() + 0.5) * (2 / 105) - 1


def paths(draw: Augmenter, n: int = 200) -> Tensor:
    """Where the points of the first drawing's path move, on the canvas, (n, P, 2)."""
    assert draw.by_pen
    points = draw.draw_points(torch.zeros(n, dtype=torch.long))
    return to_canvas(points[:, draw._present[0]])


@pytest.mark.parametrize(
    "ranges",
    [
        *({name: 0.3} for name in ("scale", "aspect", "shear", "slope")),
        *({"rotation_deg": 180.0}, {"shift_px": 5.0}),
        {
            "rotation_deg": 90.0,
            "scale": 0.5,
            "aspect": 0.5,
            "shear": 0.5,
            "slope": 0.5,
            "shift_px": 5.0,
        },
    ],
    ids="-".join,
)
def test_points_of_a_path_move_as_pixels_of_a_picture_do(
    augment_drawn: Augment, ranges: dict[str, float]
) -> None:
    """The one map is the other's inverse, and the same random numbers give both."""
    _, draw = augment_drawn("rad", recipe(**ranges))
    _, still = augment_drawn("rad", recipe())
    linear, shift = maps(direct(**ranges))
    source = paths(draw) @ linear.mT + shift[:, None]
    torch.testing.assert_close(source, paths(still), rtol=0, atol=1e-4)
    assert (paths(draw) - paths(still)).abs().max() > 0.1


def test_points_of_a_path_move_by_the_elastic_field_where_they_are(augment_drawn: Augment) -> None:
    chosen = {"elastic_px": 0.8}
    _, draw = augment_drawn("rad", recipe(**chosen))
    _, still = augment_drawn("rad", recipe())
    n = 300
    grid = direct(**chosen).draw_warp(torch.zeros(n, dtype=torch.long)).double()
    p = (torch.arange(28, dtype=torch.float64) + 0.5) / 14 - 1
    field = (grid - torch.stack(torch.meshgrid(p, p, indexing="xy"), -1)).movedim(-1, 1)
    at = paths(still, n)
    there = F.grid_sample(field, at[:, None], align_corners=False)[:, :, 0].mT  # (n, P, 2)
    moved = paths(draw, n) - at
    torch.testing.assert_close(moved, there, rtol=0, atol=0.1 / 14)  # a tenth of a pixel
    assert (14 * moved).std(0).mean() == pytest.approx(0.8, rel=0.1)


def test_rotation_is_one_in_its_range() -> None:
    linear, shift = maps(direct(rotation_deg=20))
    identity = torch.eye(2, dtype=torch.float64)
    assert torch.allclose(linear @ linear.mT, identity.expand_as(linear), atol=1e-5)
    assert (torch.linalg.det(linear) > 0).all()
    assert shift.abs().max() < 1e-5, "about the middle"
    angle = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert_covers(angle, -20, 20)


def test_scale_grows_and_shrinks_alike() -> None:
    linear, _ = maps(direct(scale=0.3))
    size = 1 / linear[:, 0, 0]
    assert torch.allclose(linear[:, 0, 0], linear[:, 1, 1], atol=1e-5)
    assert linear[:, 0, 1].abs().max() < 1e-5 and linear[:, 1, 0].abs().max() < 1e-5
    assert_covers(size, 0.7, 1.3)


def test_aspect_changes_the_shape_and_not_the_area() -> None:
    linear, _ = maps(direct(aspect=0.4))
    assert torch.allclose(torch.linalg.det(linear), torch.ones(200).double(), atol=1e-5)
    assert_covers(linear[:, 1, 1] / linear[:, 0, 0], 0.6, 1.4)  # width over height


def test_shear_slants_and_leaves_rows_in_place() -> None:
    linear, _ = maps(direct(shear=0.2))
    assert torch.allclose(linear[:, 1], torch.tensor([0.0, 1.0]).double(), atol=1e-5)
    assert torch.allclose(linear[:, 0, 0], torch.ones(200).double(), atol=1e-5)
    assert_covers(linear[:, 0, 1], -0.2, 0.2)


def test_slope_tilts_and_leaves_columns_in_place() -> None:
    linear, _ = maps(direct(slope=0.2))
    assert torch.allclose(linear[:, :, 1], torch.tensor([0.0, 1.0]).double(), atol=1e-5)
    assert torch.allclose(linear[:, 0, 0], torch.ones(200).double(), atol=1e-5)
    assert_covers(linear[:, 1, 0], -0.2, 0.2)


def test_shifts_and_elastic_offsets_are_larger_along_y() -> None:
    _, shift = maps(direct(shift_px=2.8, vertical=4.0))
    source = -14 * shift
    assert_covers(source[:, 0], -1.4, 1.4)
    assert_covers(source[:, 1], -5.6, 5.6)
    draw, alike = (direct(elastic_px=0.8, vertical=vertical) for vertical in (4.0, 1.0))
    still = direct().draw_warp(torch.zeros(9, dtype=torch.long))
    moved, as_before = (
        d.draw_warp(torch.zeros(9, dtype=torch.long)) - still for d in (draw, alike)
    )
    expected = as_before * torch.tensor([0.5, 2.0])
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


def test_elastic_offsets_have_their_deviation() -> None:
    """The field is a mean over few control points, so the deviation is over many fields."""
    draw = direct(elastic_px=0.8)
    p = (torch.arange(28) + 0.5) / 14 - 1
    y, x = torch.meshgrid(p, p, indexing="ij")
    grid = draw.draw_warp(torch.zeros(2000, dtype=torch.long))
    offset = (grid - torch.stack([x, y], -1)) * 14  # pixels
    deviation = offset.std(0)  # at each place
    assert deviation.min() > 0.72 and deviation.max() < 0.88
    assert deviation.mean().item() == pytest.approx(0.8, rel=0.03)
    neighbours = (offset[:, :, 1:] - offset[:, :, :-1]).abs().max()
    assert neighbours < 1, "smooth: the field never folds"


# Geometry, as it is drawn


def centroid(images: Tensor) -> Tensor:
    """(b, 1, 28, 28) to (b, 2): x, y in pixels."""
    i = torch.arange(28.0)
    mass = images.sum((1, 2, 3))
    return torch.stack([images.sum((1, 2)) @ i, images.sum((1, 3)) @ i], 1) / mass[:, None]


def variances(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the ink's places along x, along y, and their covariance, each (b,)."""
    i = torch.arange(28.0)
    offset = i[None] - centroid(images).T[:, :, None]  # (2, b, 28)
    grey = images[:, 0] / images.sum((1, 2, 3))[:, None, None]  # (b, 28, 28)
    xx = torch.einsum("byx,bx->b", grey, offset[0].square())
    yy = torch.einsum("byx,by->b", grey, offset[1].square())
    xy = torch.einsum("byx,bx,by->b", grey, offset[0], offset[1])
    return xx, yy, xy


def principal_angle_deg(images: Tensor) -> Tensor:
    """Of the axis along which the ink extends most, in (-90, 90] from the downward direction."""
    xx, yy, xy = variances(images)
    return torch.rad2deg(torch.atan2(2 * xy, yy - xx) / 2)


@pytest.mark.parametrize("render", RENDERS)
def test_shift_moves_the_ink_both_ways_within_its_range(
    augment_drawn: Augment, render: str
) -> None:
    drawings, draw = augment_drawn("is", recipe(shift_px=2.0, render=render))
    moved = centroid(draw(200)) - centroid(drawings)
    assert moved.abs().max() < 2.1
    assert (moved.min(0).values < -1.6).all() and (moved.max(0).values > 1.6).all()


@pytest.mark.parametrize("render", RENDERS)
def test_rotation_turns_the_ink_both_ways_within_its_range(
    augment_drawn: Augment, render: str
) -> None:
    drawings, draw = augment_drawn("is", recipe(rotation_deg=12.0, render=render))
    turned = principal_angle_deg(draw(200)) - principal_angle_deg(drawings)
    assert turned.abs().max() < 12.5
    assert turned.min() < -10 and turned.max() > 10


@pytest.mark.parametrize("render", RENDERS)
@pytest.mark.parametrize("rune", ["cen", "sigel"])  # unlike either of their mirror images
def test_no_drawing_is_a_mirror_image(augment_drawn: Augment, rune: str, render: str) -> None:
    drawings, draw = augment_drawn(rune, Recipe(render=render))
    images = draw(100)

    def likeness(template: Tensor) -> Tensor:
        """Correlation with ``template`` wherever within 5 px it fits best."""
        return F.conv2d(images, template, padding=5).flatten(1).max(1).values

    original = likeness(drawings)
    for axis in (-1, -2):  # left for right, upside down
        assert (original > likeness(drawings.flip(axis))).all()


def pen_width_px(images: Tensor) -> Tensor:
    """Of one upright stroke: ink per row, in the rows around the middle."""
    return images[:, 0, 11:17].sum(2).mean(1)


def stroke_length_px(images: Tensor) -> Tensor:
    return images.sum((1, 2, 3)) / pen_width_px(images)


def test_pen_keeps_its_width_whatever_the_size(augment_drawn: Augment) -> None:
    drawings, draw = augment_drawn("is", recipe(scale=0.4))
    images = draw(100)
    lengths = stroke_length_px(images) / stroke_length_px(drawings)
    assert lengths.min() < 0.7 and lengths.max() > 1.25
    widths = pen_width_px(images) / pen_width_px(drawings)
    assert widths.min() > 0.85 and widths.max() < 1.2

    _, draw = augment_drawn("is", recipe(scale=0.4, render="direct"))
    widths = pen_width_px(draw(100)) / pen_width_px(drawings)
    assert widths.min() < 0.7 and widths.max() > 1.3, "a picture's pen does not"


def widths_of_bars(images: Tensor) -> Tensor:
    """Width in pixels of the bitmap of a straight stroke, however it lies, (b,).

    A bar of length l and width w has the variances l^2 / 12 and w^2 / 12 along its axes.
    """
    xx, yy, xy = variances(images)
    difference = ((xx - yy).square() + 4 * xy.square()).sqrt()  # of the variances
    return images.sum((1, 2, 3)) / (12 * difference).sqrt() * (105 / 28)


@pytest.fixture
def augment_bar(augment_strokes: Augment) -> Augment:
    """An upright bar, five pixels wide, and an augmenter for it."""
    bar = torch.zeros(1, 105, 105)
    bar[:, 30:75, 50:55] = 1
    return functools.partial(augment_strokes, bar)


@pytest.mark.parametrize(
    "ranges",
    [
        {"scale": 0.5, "rotation_deg": 180.0},
        {"aspect": 0.8, "rotation_deg": 10.0},
        {"shear": 1.0},
        {"slope": 1.0},
        {"scale": 0.4, "rotation_deg": 180.0, "aspect": 0.5, "shear": 0.3, "shift_px": 1.0},
    ],
    ids="-".join,
)
def test_pen_is_five_pixels_wide_however_it_is_moved(
    augment_bar: Augment, ranges: dict[str, float]
) -> None:
    drawings, draw = augment_bar(recipe(render="pen", **ranges))
    assert draw.by_pen
    assert widths_of_bars(drawings).item() == pytest.approx(5, abs=0.1)
    widths = widths_of_bars(draw(300))
    assert widths.min() > 4.5 and widths.max() < 5.5
    assert widths.mean().item() == pytest.approx(5, abs=0.05)


def test_blending_moves_toward_the_other_drawing(augment_strokes: Augment) -> None:
    """Here the others' mean is halfway to the other one, and the way goes up to twice as far."""
    first = draw_rune("ing", 1, seed=0)
    pair = torch.cat([first, first.roll((9, -6), (1, 2))])
    still = recipe(blend=2.0, blend_spread=0.0)
    drawings, draw = augment_strokes(pair, still)
    start, end = centroid(drawings).double()
    offset = centroid(draw(200)).double() - start
    share = offset @ (end - start) / (end - start).square().sum()
    aside = offset - share[:, None] * (end - start)
    assert_covers(share.clamp(0, 1), 0, 1)
    assert share.min() > -0.1 and share.max() < 1.1
    assert aside.norm(dim=1).max() < 0.3


def test_drawings_blend_the_more_the_noisier_they_will_be(augment_strokes: Augment) -> None:
    first = draw_rune("ing", 1, seed=0)
    pair = torch.cat([first, first.roll((9, -6), (1, 2))])
    drawings, draw = augment_strokes(pair, recipe(blend=2.0, blend_spread=0.0, blend_from_t=0.4))
    whole = (centroid(drawings)[1] - centroid(drawings)[0]).norm()

    def furthest(t: float | None) -> float:
        images = draw(200) if t is None else draw(200, torch.full((200,), t))
        places = centroid(images)
        nearest = torch.cdist(places, centroid(drawings)).amin(1)
        return (nearest.max() / whole).item()

    assert furthest(0.0) < 0.05 and furthest(0.4) < 0.05
    assert furthest(0.55) == pytest.approx(0.25, abs=0.05)
    assert furthest(0.7) == pytest.approx(0.5, abs=0.05)  # halfway: as far as can be from both
    assert furthest(0.999) == pytest.approx(0.5, abs=0.05)
    assert furthest(None) == pytest.approx(0.5, abs=0.05)

    times = torch.tensor([0.1, 0.999]).repeat(100)
    draw.generator.manual_seed(1)
    together = draw(200, times)
    draw.generator.manual_seed(1)
    assert torch.equal(together[0::2], draw(200, torch.full((200,), 0.1))[0::2])


@pytest.mark.parametrize("render", RENDERS)
def test_another_generator_leaves_the_first_alone(render: str) -> None:
    drawings = resize_bitmaps(draw_rune("is", 4, seed=0), "bilinear")
    alone = Augmenter(drawings, Recipe(render=render), generator())
    beside = Augmenter(drawings, Recipe(render=render), generator())
    other = copy.copy(beside)
    other.generator = generator(1)
    assert not torch.equal(other(8), alone(8))
    assert not torch.equal(other(8), beside(8))
    assert torch.equal(alone(8), beside(8))


def test_points_that_pad_are_finite() -> None:
    """Some drawings have fewer points than others; what pads them lies outside of the canvas."""
    drawings = resize_bitmaps(torch.cat([draw_rune(r, 2, seed=0) for r in RUNES]), "bilinear")
    draw = Augmenter(drawings, Recipe(elastic_px=1.0), generator())
    assert draw.by_pen
    index = torch.arange(4).repeat(5)
    assert draw.draw_points(index).isfinite().all()


def test_many_drawings_do_not_blend() -> None:
    drawings = resize_bitmaps(draw_rune("is", 21, seed=0), "bilinear")
    blended, plain = (Augmenter(drawings, Recipe(blend=blend), generator()) for blend in (1.0, 0.0))
    assert torch.equal(blended(8), plain(8))


# Drawings that are no resized strokes, or not by the pen


def strokes_of_width(width: int) -> Tensor:
    """Drawings (4, 105, 105) with strokes about so many pixels wide, an odd number."""
    bitmaps = draw_rune("ing", 4, seed=0).float()[:, None]
    by = abs(width - 5) // 2
    if width > 5:
        return F.max_pool2d(bitmaps, 2 * by + 1, 1, by)[:, 0]
    return 1 - F.max_pool2d(1 - bitmaps, 2 * by + 1, 1, by)[:, 0]


@pytest.mark.parametrize("width", [3, 9, 11])
def test_strokes_of_another_width_are_drawn_by_a_pen_of_that_width(
    augment_strokes: Augment, width: int
) -> None:
    """People's own drawings are not of Omniglot's pen."""
    drawings, draw = augment_strokes(strokes_of_width(width), recipe(), resize="antialiased")
    assert draw.by_pen and draw.operator is not None
    images = draw(40)
    errors = (images[:, None] - drawings[None]).square().mean((2, 3, 4))
    assert errors.min(1).values.max() < 4e-3
    assert images.mean().item() == pytest.approx(drawings.mean().item(), rel=0.1)


def test_one_drawing_that_no_pen_made_is_enough(augment_strokes: Augment) -> None:
    """Others hide it from a mean: thin lines beside a thick one are as wide on average."""
    bitmaps = draw_rune("ing", 3, seed=0).float()
    _, of_a_pen = augment_strokes(bitmaps, Recipe(render="pen", blend=0.0))
    assert of_a_pen.by_pen
    mixed = torch.zeros(1, 105, 105)
    mixed[0, 20:90, 20:35] = 1
    mixed[0, 20:90, 50:90:6] = 1
    _, not_of_a_pen = augment_strokes(torch.cat([bitmaps, mixed]), Recipe(render="pen", blend=0.0))
    assert not not_of_a_pen.by_pen


@pytest.mark.parametrize("width", [3, 5, 7, 9, 17])
def test_strokes_of_any_width_keep_their_ink(augment_strokes: Augment, width: int) -> None:
    """A pen of five pixels that fills wider ones by going to and fro leaves gaps elsewhere."""
    drawings, draw = augment_strokes(strokes_of_width(width), Recipe(), resize="bilinear")
    assert draw(300).mean().item() == pytest.approx(drawings.mean().item(), rel=0.1)


def test_smooth_pictures_are_warped_as_they_are() -> None:
    i = torch.arange(28.0)
    bells = [torch.exp(-((i - centre) ** 2) / 60) for centre in (9.0, 15.0)]
    blobs = torch.stack([torch.outer(bell, bell) for bell in bells])[:, None]
    draw = Augmenter(blobs, Recipe(blend=0.5), generator())
    assert draw.operator is None, "nobody knows what made them"
    assert torch.equal(draw(16), Augmenter(blobs, Recipe(render="direct"), generator())(16))


def test_noise_is_drawn_all_the_same() -> None:
    noise = torch.rand(1, 1, 28, 28, generator=generator())
    images = Augmenter(noise, recipe(rotation_deg=10), generator())(64)
    assert images.min() >= 0 and images.max() <= 1 + 1e-6
    inner = slice(8, 20)  # corners turn out of the picture
    grey = noise[:, :, inner, inner].mean().item()
    assert images[:, :, inner, inner].mean().item() == pytest.approx(grey, rel=0.1)


@pytest.mark.parametrize("render", RENDERS)
def test_blank_drawings_stay_blank(render: str) -> None:
    images = Augmenter(torch.zeros(1, 1, 28, 28), Recipe(render=render), generator())(16)
    assert torch.equal(images, torch.zeros(16, 1, 28, 28))
