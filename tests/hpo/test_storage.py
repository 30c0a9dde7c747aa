"""Opening databases: what is set, and what a mistake looks like."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from finetune.errors import UserError
from hpo.storage import open_storage, open_study, shown

SAMPLER, PRUNER = optuna.samplers.RandomSampler(seed=0), optuna.pruners.NopPruner()


def test_a_study_is_created_once_and_then_joined(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    first, created = open_study(open_storage(url), "s", SAMPLER, PRUNER)
    first.set_user_attr("a", 1)
    second, again = open_study(open_storage(url), "s", SAMPLER, PRUNER)
    assert (created, again) == (True, False)
    assert second.user_attrs == {"a": 1}


def test_passwords_are_never_shown() -> None:
    assert shown("postgresql://me:secret@host/runes") == "postgresql://me:***@host/runes"
    with pytest.raises(UserError) as error:
        shown("me:secret@host")
    assert "secret" not in str(error.value)


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_text("this is no database, however long it may be" * 100)
    with pytest.raises(UserError, match=r"can't open sqlite:///.*s\.db: file is not a database"):
        open_storage(f"sqlite:///{path}")
