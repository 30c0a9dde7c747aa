"""What people read of the rows of `benchmarks.throughput`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .figures import Figure, mean_and_error, ratio

Row = dict[str, Any]
# Of a row: its name, what people read, and the digits that they get.
FIGURES = (
    ("train_s", "training (the call), s", 2),
    ("first_step_s", "  start to end of the first step, s", 2),
    ("eval_s", "evaluation, s", 2),
    ("trials_per_hour", "trials per hour", 1),
    ("train_images_per_s", "images/s in training", 1),
    ("eval_images_per_s", "images/s in evaluation", 1),
    ("standard_error", "standard error of the loss", 5),
    ("peak_mib", "peak memory of a process, MiB", 0),
    ("gpu_peak_mib", "  on the GPU, MiB", 0),
    ("train_gflops", "GFLOP/s in training", 1),
    ("share_of_matrices", "  over a large matrix product's", 3),
    ("share_of_convolution", "  over a 3x3 convolution's", 3),
)
COMPARED = ("trials_per_hour", "train_images_per_s", "eval_images_per_s")
_GROWING = ("ms_per_step", "images_per_s", "seconds")
_WORDS, _COLUMN = 36, 32


def by_contender(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what ran, each in the order of the repeats; the naive script first."""
    found: dict[str, list[Row]] = {}
    for row in sorted(
        rows, key=lambda r: (r["contender"], r["workers"], r["together"], r["repeat"])
    ):
        threads = f"{row['threads']} thread{'' if row['threads'] == 1 else 's'}"
        beside = "" if row["together"] == 1 else f", {row['together']} calls"
        name = f"{row['contender']}, {row['workers']} x {threads}{beside}"
        found.setdefault(name, []).append(row)
    return found


def ratios(rows: Sequence[Row]) -> dict[str, dict[str, Figure]]:
    """Ours over naive, for each way of running ours and each of `COMPARED`."""
    columns = by_contender(rows)
    naive = next(column for column in columns.values() if column[0]["contender"] == "naive")
    return {
        name: {f: ratio([r[f] for r in column], [r[f] for r in naive]) for f in COMPARED}
        for name, column in columns.items()
        if column is not naive
    }


def table(rows: Sequence[Row]) -> str:
    """A line for each figure, a column for each contender; then `ratios`."""
    columns = by_contender(rows)
    lines = [_line("", columns)]
    lines.append(_line("precision", [column[0]["precision"] for column in columns.values()]))
    for name, words, digits in FIGURES:
        figures = [mean_and_error([row[name] for row in column]) for column in columns.values()]
        if any(value for value, _ in figures):
            lines.append(_line(words, [_show(figure, digits) for figure in figures]))
    found = ratios(rows)
    words_of = {name: words for name, words, _ in FIGURES}
    lines += ["", _line("over naive", ["", *found])]
    for name in COMPARED:
        shown = [_show(figures[name], 2) for figures in found.values()]
        lines.append(_line(words_of[name], ["", *shown]))
    return "\n".join(lines)


def growth_table(rows: Sequence[Row]) -> str:
    """A line for each value of what grows; means over the repeats."""
    lines = []
    for grows in dict.fromkeys(row["grows"] for row in rows):
        mine = [row for row in rows if row["grows"] == grows]
        names = [name for name in _GROWING if name in mine[0]]
        lines.append(_line(grows, names))
        for x in dict.fromkeys(row["x"] for row in mine):
            at = [row for row in mine if row["x"] == x]
            figures = (mean_and_error([row[name] for row in at]) for name in names)
            lines.append(_line(f"  {x}", [_show(figure, 2) for figure in figures]))
    return "\n".join(lines)


def _line(words: str, cells: Sequence[str] | dict[str, Any]) -> str:
    return (f"{words:<{_WORDS}}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells)).rstrip()


def _show(figure: Figure, digits: int) -> str:
    value, error = figure
    return f"{value:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")
