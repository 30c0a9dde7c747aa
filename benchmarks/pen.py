"""``python -m benchmarks.pen``: what pen drew the runes, and how well its path is found.

Prints how much of the ink discs of a few radii cover that lie inside the ink; how wide upright
strokes are where their left edge is straight, in real bitmaps, in bitmaps rebuilt from drawings and
in those drawn along the traced path; and the share of wrong bits, of those that a resize
looks at, in the worst of ten drawings.
"""

from __future__ import annotations

import argparse
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from finetune.augment.bitmaps import rebuild
from finetune.augment.pen import stamp, trace
from finetune.canvas import BITMAP_SIZE, PEN_RADIUS, RESIZES
from finetune.data.options import add_drawings_options, open_asked
from finetune.data.runes import choose_runes, resize_bitmaps
from finetune.errors import run_command

_RADII = (2.0, 2.25, 2.5, 2.75, 3.0)
_OFFSETS = (-0.5, -0.25, 0.0, 0.25)  # of discs' centres from those of pixels, along each axis
_STRAIGHT = 7  # rows in which an edge keeps its column
_WIDTHS = (3, 4, 5, 6, 7)


def covered(bitmaps: Tensor, radius: float) -> float:
    """Share of the ink of (n, H, H) that discs inside it cover."""
    ink = F.pad(bitmaps[:, None], (4, 4, 4, 4))
    found = torch.zeros_like(ink)
    i = torch.arange(-4.0, 5.0)
    for y in _OFFSETS:
        for x in _OFFSETS:
            disc = ((i - y).square()[:, None] + (i - x).square() <= radius**2).float()[None, None]
            inside = (F.conv2d(ink, disc, padding=4) >= disc.sum() - 0.5).float()
            found = found.maximum((F.conv_transpose2d(inside, disc, padding=4) > 0.5).float())
    return (found.sum() / ink.sum()).item()


def widths(bitmaps: Tensor) -> Counter[int]:
    """How often strokes of (n, H, H) have which width, in rows where the left edge is straight."""
    ink = F.pad(bitmaps > 0.5, (1, 1))
    edges = ink[:, :, 1:] & ~ink[:, :, :-1]  # (n, H, H + 1)
    straight = edges.unfold(1, _STRAIGHT, 1).all(-1)  # starts of straight parts
    found: Counter[int] = Counter()
    for n, y, x in straight.nonzero().tolist():
        row = ink[n, y + _STRAIGHT // 2, x + 1 :]
        found[int((~row).int().argmax())] += 1
    return found


def _described(found: Counter[int]) -> str:
    total = max(1, sum(found.values()))
    shares = [100 * found[w] / total for w in _WIDTHS]
    return "".join(f"{v:>7.1f} %" for v in (*shares, 100 - sum(shares))) + f"{total:>9}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pen", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_drawings_options(parser)
    parser.add_argument("--source", choices=("omniglot", "drawn"), default="omniglot")
    parser.add_argument("--runes", nargs="+", metavar="RUNE", help="default: all")
    arguments = parser.parse_args(argv)
    source = open_asked(arguments)
    source.check_bitmaps()
    runes = choose_runes(source, arguments.runes, len(source.runes))
    true = torch.cat([source.bitmaps[rune] for rune in runes]).float()

    print(f"{len(true)} bitmaps of {len(runes)} runes ({source.name})")
    for radius in _RADII:
        print(f"discs of radius {radius:<5} cover {100 * covered(true, radius):.1f} % of the ink")

    everywhere = torch.ones(BITMAP_SIZE, dtype=torch.bool)
    lines = [f"{'true bitmaps':<28}{_described(widths(true))}"]
    errors = []
    for resize in RESIZES:
        rebuilt_widths: Counter[int] = Counter()
        drawn_widths: Counter[int] = Counter()
        wrong = []
        for rune in tqdm(runes, unit="rune", desc=resize, leave=False):
            drawings = resize_bitmaps(source.bitmaps[rune], resize)[:10, 0]
            bitmaps, resizing, _ = rebuild(drawings)
            points, present, error = trace(bitmaps, resizing.seen(), PEN_RADIUS)
            wrong.append(error)
            rebuilt_widths += widths(bitmaps)
            drawn_widths += widths(stamp(points, present, PEN_RADIUS, everywhere))
        lines.append(f"{'rebuilt from ' + resize:<28}{_described(rebuilt_widths)}")
        lines.append(f"{'drawn along its path':<28}{_described(drawn_widths)}")
        found = torch.tensor(wrong)
        errors.append(
            f"{resize:<14} mean {100 * found.mean():.1f} %, worst {100 * found.max():.1f} %"
        )
    print(
        f"\n{'upright strokes, width':<28}"
        + "".join(f"{w:>6} px" for w in _WIDTHS)
        + "    other     rows"
    )
    print("\n".join(lines))
    print(
        "\nwrong bits along the path, of those known, over the ink bits, in a rune's worst drawing"
    )
    print("\n".join(errors))
    return 0


if __name__ == "__main__":
    run_command(main)
