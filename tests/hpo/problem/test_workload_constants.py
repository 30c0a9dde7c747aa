"""What a call has to do is reckoned with the same numbers as the method itself has."""

from __future__ import annotations

from finetune.augment import mix
from finetune.train import run
from hpo.problem import calibration, workload


def test_the_numbers_are_the_methods() -> None:
    assert (workload._MOST_BLENDED, workload._MOST_TRACED) == (mix._MOST_BLENDED, mix._MOST_TRACED)
    assert workload._LEVEL_SAMPLES == run._LEVEL_SAMPLES
    assert workload._DRAWN_AT_ONCE == calibration._DRAWN_AT_ONCE == run._DRAWN_AT_ONCE
