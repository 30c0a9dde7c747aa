"""``python -m benchmarks.windows``: what windows on augmented drawings add, by t.

Unseen drawings are asked about: the network's mean with that of whole images mixed in
(`finetune.predict.bank`), the mean by windows (`finetune.predict.windows`), and both as a call
answers.  The best share of the windows is that of `benchmarks.opinions`, one for all pixels of a t.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch
from torch import Tensor

from finetune.errors import run_command
from finetune.predict.posterior import LevelPosterior
from finetune.scoring.estimators import NoiseTable

from .adapting import adapted_runes, add_adapting_options, noise_for
from .figures import ratio
from .opinions import Opinions, asked

N_BINS = 20  # of t
_ASKED = slice(3, 14)  # bins in which windows are asked what they would say


class Sums(Opinions):
    """Of answers without windows, by windows and with them: bin k is of t from k / N_BINS on."""

    def __init__(self) -> None:
        super().__init__(N_BINS)

    def add(self, x: Tensor, without: Tensor, windows: Tensor, answer: Tensor, t: Tensor) -> None:
        """As `Opinions.add_to`."""
        self.add_to(bins_of(t), x, without, windows, answer, t)


def bins_of(t: Tensor) -> Tensor:
    """Of times (B, 1, 1, 1) their bins, (B,)."""
    return (t.flatten() * N_BINS).long()


@torch.inference_mode()
def ask(model: LevelPosterior, drawings: Tensor, table: NoiseTable, sums: Sums) -> None:
    """Add what ``model`` and its images say of ``drawings`` (n, 1, 28, 28), which are unseen."""
    for a in asked(model, drawings, table):
        windows, answer = a.mixed.clone(), a.mixed.clone()
        some = (bins_of(a.t) >= _ASKED.start) & (bins_of(a.t) < _ASKED.stop)
        if some.any():
            near, effective = a.bank.near(a.x_t[some], a.t[some])
            windows[some] = near
            answer[some] = a.bank.mixed_near(a.mixed[some], near, effective, a.t[some])
        sums.add(a.x, a.mixed, windows, answer, a.t)


def table_of(sums: Sums) -> Iterable[str]:
    """Lines for people; losses are means over the bin."""
    heads = ("t from", "without", "windows", "with", "best share")
    yield "{:<8}{:>11}{:>11}{:>11}{:>12}".format(*heads)
    for k in range(N_BINS)[_ASKED]:
        if sums.count[k] > 0:
            yield f"{k / N_BINS:<8.2f}{sums.told(k)}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.windows", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_adapting_options(parser, replicates=4)
    arguments = parser.parse_args(argv)
    sums = Sums()
    each: list[tuple[float, float]] = []
    for case in adapted_runes(arguments):
        assert isinstance(case.model, LevelPosterior)
        before = sums.mixed.sum().item(), sums.alone.sum().item()
        test = case.split.test
        table = noise_for(case, len(test), arguments.replicates)
        ask(case.model, test, table, sums)
        after = sums.mixed.sum().item(), sums.alone.sum().item()
        each.append((after[0] - before[0], after[1] - before[1]))
    for line in table_of(sums):
        print(line)
    answers, without = zip(*each, strict=True)
    value, error = ratio(answers, without)
    print(f"with windows over without, at all t: {value:.3f} ± {error:.3f} (over runes)")
    return 0


if __name__ == "__main__":
    run_command(main)
