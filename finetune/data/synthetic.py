"""Drawn runes: the Futhorc in the look of Omniglot, a data source that needs no download.

Each drawing is by a hand of its own: it places, sizes and slants the whole rune, misplaces
its points, misses the joints a little, rounds the corners and trembles.  The amounts were set
beside real Omniglot drawings.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..canvas import BITMAP_SIZE, PEN_RADIUS
from ..errors import UserError
from .futhorc import FUTHORC, Rune

SPACING_PX = 0.5  # between pen positions: the outline is then within 0.02 px of the stroke's
MARGIN_PX = 3.0  # from the bitmap's edge to a pen position: no stroke is cut

Points = NDArray[np.float64]  # (P, 2): x, y


class Hand(NamedTuple):
    """How one person draws one rune; lengths in pixels."""

    height: float
    width: float  # what x is scaled by; equal to the height is true to the table
    slant: float  # shift in x per pixel in y
    turn: float  # radians
    centre: tuple[float, float]
    misplacement: float  # standard deviation of a point's error
    corner: float  # length over which a corner is rounded
    tremor: float  # standard deviation of a stroke's wobble


def drawn_rune_names() -> tuple[str, ...]:
    """The names that ``draw_rune`` takes, in the order of the Futhorc."""
    return tuple(FUTHORC)


def draw_rune(name: str, n: int, seed: int) -> Tensor:
    """``n`` drawings of one rune by ``n`` hands, (n, 105, 105) uint8: 1 is ink, 0 is paper.

    Drawing i depends on ``name``, ``seed`` and i only, so more drawings never change the first.

    Args:
        name: one of ``drawn_rune_names()``.
        n: how many, 0 or more.
        seed: 0 or more.

    Raises:
        UserError: no such rune.
        ValueError: ``n`` or ``seed`` is negative.
    """
    if name not in FUTHORC:
        raise UserError(f"no rune is called {name!r}; write one of {', '.join(FUTHORC)}")
    if n < 0 or seed < 0:
        raise ValueError(f"n is {n} and seed is {seed}; write 0 or more for each")
    # The name itself, not its place in the table: a new rune leaves the others' hands alone.
    key = int.from_bytes(name.encode(), "big")
    bitmaps = np.zeros((n, BITMAP_SIZE, BITMAP_SIZE), np.uint8)
    for i, bitmap in enumerate(bitmaps):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(key, i)))
        _ink(bitmap, _pen_positions(FUTHORC[name], _draw_hand(rng), rng))
    return torch.from_numpy(bitmaps)


def _draw_hand(rng: np.random.Generator) -> Hand:
    height = rng.normal(77, 9)
    return Hand(
        height=height,
        width=height * np.exp(rng.normal(0, 0.11)),
        slant=rng.normal(0, 0.04),
        turn=rng.normal(0, 0.025),
        centre=(rng.normal(50.5, 3), rng.normal(52.5, 4.5)),
        misplacement=np.exp(rng.normal(np.log(1.6), 0.4)),
        corner=rng.uniform(0.5, 3.5),
        # Most hands are steady, a few are not.
        tremor=np.exp(rng.normal(np.log(0.45), 0.45)),
    )


def _pen_positions(rune: Rune, hand: Hand, rng: np.random.Generator) -> Points:
    """Where the pen touches the paper, (P, 2) pixels, closely spaced, inside the margin."""
    points = np.array([point for stroke in rune for point in stroke], float)
    points = _misshape(points - (points.min(0) + points.max(0)) / 2, rng)
    x, y = (points * (hand.width, hand.height)).T
    x = x - hand.slant * y
    cos, sin = np.cos(hand.turn), np.sin(hand.turn)
    points = np.stack((cos * x - sin * y, sin * x + cos * y), 1)
    # Each stroke has its own copy of a joint's point, so strokes overshoot and fall short.
    points += rng.normal(0, hand.misplacement, points.shape)
    strokes = np.split(points, np.cumsum([len(stroke) for stroke in rune])[:-1])
    return _fit(np.concatenate([_trace(stroke, hand, rng) for stroke in strokes]), hand.centre)


def _misshape(points: Points, rng: np.random.Generator) -> Points:
    """Bend the plane of ``points`` (within [-1/2, 1/2]) by a random quadratic map.

    It moves a joint as one, as a hand does that has the shape a little wrong.
    """
    x, y = points.T
    bends = np.stack((x * x, x * y, y * y), 1)
    return points + bends @ rng.normal(0, 0.12, (3, 2))


def _trace(corners: Points, hand: Hand, rng: np.random.Generator) -> Points:
    """One stroke through ``corners`` (C, 2): evenly sampled, rounded at the corners, wobbling."""
    lengths = np.hypot(*np.diff(corners, axis=0).T)
    along = np.concatenate(([0.0], np.cumsum(lengths)))
    s = np.linspace(0, along[-1], int(np.ceil(along[-1] / SPACING_PX)) + 1)
    points = np.stack([np.interp(s, along, axis) for axis in corners.T], 1)
    points = _round_corners(points, hand.corner / SPACING_PX)
    return points + hand.tremor * _wobble(s, rng)


def _round_corners(points: Points, sigma: float) -> Points:
    """Smooth along the stroke, ``sigma`` in samples; the ends stay where they are."""
    reach = min(int(3 * sigma) + 1, len(points) - 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    before = 2 * points[0] - points[reach:0:-1]
    after = 2 * points[-1] - points[-2 : -reach - 2 : -1]
    padded = np.concatenate((before, points, after))
    return np.stack([np.convolve(axis, kernel, "valid") for axis in padded.T], 1)


def _wobble(s: NDArray[np.float64], rng: np.random.Generator) -> Points:
    """A smooth wobble along arc length ``s`` (S,) in pixels, (S, 2), of unit variance."""
    periods = rng.uniform(12, 60, (5, 1, 2))
    phases = rng.uniform(0, 2 * np.pi, (5, 1, 2))
    waves = np.sin(2 * np.pi * s[:, None] / periods + phases)
    wobble: Points = np.sqrt(2 / 5) * waves.sum(0)
    return wobble


def _fit(points: Points, centre: tuple[float, float]) -> Points:
    """Centre on ``centre``, then shrink and shift no more than the margin asks for."""
    low, high = points.min(0), points.max(0)
    room = BITMAP_SIZE - 1 - 2 * MARGIN_PX
    shrink = min(1.0, room / (high - low).max())
    half = shrink * (high - low) / 2
    middle = np.clip(centre, MARGIN_PX + half, BITMAP_SIZE - 1 - MARGIN_PX - half)
    fitted: Points = shrink * (points - (low + high) / 2) + middle
    return fitted


def _ink(bitmap: NDArray[np.uint8], points: Points) -> None:
    """Stamp the pen, a disc, on ``bitmap`` (H, W) at each of ``points`` (P, 2), in place."""
    reach = np.arange(-3, 4)  # a disc of the pen's radius, wherever in its pixel it stands
    pixels = np.rint(points).astype(int)[:, :, None] + reach  # (P, 2, 7): columns and rows
    x_squared, y_squared = ((pixels - points[:, :, None]) ** 2).transpose(1, 0, 2)
    inside = x_squared[:, None, :] + y_squared[:, :, None] <= PEN_RADIUS**2  # (P, 7, 7)
    position, row, column = inside.nonzero()
    bitmap[pixels[position, 1, row], pixels[position, 0, column]] = 1
