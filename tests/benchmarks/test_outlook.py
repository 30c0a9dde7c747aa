"""The reliability of what is said of the next hour."""

from __future__ import annotations

import numpy as np
import optuna
import pytest

from benchmarks.outlook import answers, print_reliability
from benchmarks.replay import Step

from .test_replay import K, table


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def test_it_happened_if_a_complete_trial_in_time_was_so_much_better() -> None:
    t = table(40).rows(np.argsort(-table(40).quality).tolist())  # from bad to good
    all_complete = [Step(row, K * (row + 1), True) for row in range(len(t))]
    falls = list(answers(t, all_complete, K, 0.0001))
    assert len(falls) == 6 and all(a.happened for a in falls)
    assert not any(a.happened for a in answers(t, all_complete, K - 1, 0.0001))
    assert not any(a.happened for a in answers(t, all_complete, K, 0.5))
    backwards = [Step(s.row, K * (i + 1), True) for i, s in enumerate(reversed(all_complete))]
    assert not any(a.happened for a in answers(t, backwards, 100 * K, 0.0001))


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_reliability(table(40), 2, [4], 0.01)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("falls by 1% within 4 calls: said 0.")
    times = [int(line.split(", ")[-1].split()[0]) for line in lines[1:]]
    assert sum(times) == int(lines[0].split(", ")[-1].split()[0])
