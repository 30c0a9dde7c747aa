"""``python -m benchmarks.drawn_sheet --out FILE``: drawn runes beside real ones, as one PNG.

Each row is a character: five drawn, then five real ones where the data has that character.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from finetune.canvas import RESIZES
from finetune.data.runes import open_drawn, open_omniglot
from finetune.data.synthetic import drawn_rune_names
from finetune.errors import run_command
from finetune.scoring.pictures import save_sheet

_EACH = 5


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drawn_sheet", description=__doc__)
    parser.add_argument("--data", type=Path, help="directory of omniglot-py (default: $RUNES_DATA)")
    parser.add_argument("--resize", choices=RESIZES, default="bilinear")
    parser.add_argument("--rows", type=int, default=8, help="characters that both sources have")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    drawn, real = open_drawn(), open_omniglot(arguments.data)
    rows: list[torch.Tensor] = []
    for number, name in enumerate(drawn_rune_names(), start=1):
        character = f"character{number:02d}"  # Omniglot has the Futhorc in its own order
        if character in real.runes and len(rows) < arguments.rows:
            ours = drawn.drawings(name, arguments.resize)[:_EACH]
            theirs = real.drawings(character, arguments.resize)[:_EACH]
            rows.append(torch.cat([ours, theirs]))
    save_sheet(rows, arguments.out)
    return 0


if __name__ == "__main__":
    run_command(main)
