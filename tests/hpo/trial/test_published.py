"""Published databases: all in them is read, and would be written again as it stands there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from hpo.storage.open import looked_at
from hpo.study.confirmation import (
    CALLS_PREFIX,
    CONFIRMED_KEY,
    Confirmation,
    read_confirmation,
    read_confirmed_call,
    write_confirmed_call,
)
from hpo.trial.record import Call, FailedCall, read_trial

PUBLISHED = sorted((Path(__file__).parents[3] / "studies" / "results").glob("*.db.gz"))


@pytest.fixture
def look() -> Callable[[Path], list[optuna.Study]]:
    def look(path: Path) -> list[optuna.Study]:
        """Copies of its studies."""
        copies = []
        with looked_at(str(path), path.stem) as storage:
            for name in optuna.get_all_study_names(storage):
                study = optuna.load_study(study_name=name, storage=storage)
                copy = optuna.create_study(study_name=name)
                copy.add_trials(study.get_trials())
                for key, value in study.user_attrs.items():
                    copy.set_user_attr(key, value)
                copies.append(copy)
        return copies

    return look


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.name)
def test_nothing_is_lost(path: Path, look: Callable[[Path], list[optuna.Study]]) -> None:
    for study in look(path):
        for trial in study.trials:
            record = read_trial(trial)
            assert record.remarks == ()
            written = record.to_json()
            assert json.dumps(written, sort_keys=True) == json.dumps(
                trial.user_attrs, sort_keys=True
            )
        confirmed = read_confirmation(study.user_attrs)
        if CONFIRMED_KEY in study.user_attrs:
            assert isinstance(confirmed, Confirmation)
            assert json.dumps(confirmed.to_json()) == json.dumps(study.user_attrs[CONFIRMED_KEY])
        attrs = study.user_attrs
        for key in [key for key in attrs if key.startswith(CALLS_PREFIX)]:
            _, digest, instance = key.split(":")
            call = read_confirmed_call(attrs, digest, instance)
            assert isinstance(call, Call | FailedCall)
            write_confirmed_call(study, digest, instance, call)
            assert json.dumps(study.user_attrs[key]) == json.dumps(attrs[key])


def test_there_are_trials_and_confirmations_among_them(
    look: Callable[[Path], list[optuna.Study]],
) -> None:
    studies = [study for path in PUBLISHED for study in look(path)]
    assert sum(len(s.trials) for s in studies) > 60
    assert any(CONFIRMED_KEY in s.user_attrs for s in studies)
