"""A study or a database that goes away under a process, with real workers and databases."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState

from hpo.errors import UserError
from hpo.storage.errors import StudyGoneError
from hpo.storage.open import load_study, open_storage

if TYPE_CHECKING:
    from tests.conftest import Nursery, Process

SCRIPT = str(Path(__file__).parents[1] / "cheap_worker.py")


@pytest.fixture
def start(launch: Callable[..., Process], cheap_nursery: Nursery) -> Callable[..., Process]:
    def start(url: str, trials: int, *options: str) -> Process:
        return launch([SCRIPT, url, str(trials), *options], cheap_nursery)

    return start


def said_by(process: Process) -> str:
    return str(process.log_path.read_text())  # type: ignore[union-attr]


def wait_until_it_says(process: Process, words: str) -> None:
    deadline = time.monotonic() + 60
    while words not in said_by(process):
        assert time.monotonic() < deadline, said_by(process)
        time.sleep(0.02)


def ends_with_one_line(worker: Process, words: str) -> None:
    assert worker.wait(60) == 2, said_by(worker)
    assert "Traceback" not in said_by(worker)
    assert "will count as lost" not in said_by(worker)
    (line,) = [text for text in said_by(worker).splitlines() if text.startswith("error: ")]
    assert words in line


def test_a_worker_of_a_deleted_study_ends_and_leaves_the_next_one_alone(
    start: Callable[..., Process], url: str
) -> None:
    worker = start(url, 50, "step_s=0.3")
    wait_until_it_says(worker, "running 1")
    optuna.delete_study(study_name="cheap", storage=open_storage(url, worker=""))
    # In SQLite the next study gets the id of the one that was deleted, and its trials get theirs.
    following = start(url, 3, "step_s=0.02", "measures=that")
    ends_with_one_line(worker, "study cheap was deleted")
    assert following.wait(60) == 0, said_by(following)
    trials = load_study(open_storage(url), "cheap").trials
    assert [t.state for t in trials] == 3 * [TrialState.COMPLETE]
    assert {t.user_attrs["worker"].split(":")[-1].split("#")[0] for t in trials} == {
        str(following.pid)
    }


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_worker_whose_database_file_went_away_ends(
    start: Callable[..., Process], new_database: Callable[[str], str], how: str
) -> None:
    url = new_database("sqlite")
    file = Path(url.removeprefix("sqlite:///"))
    worker = start(url, 50, "step_s=0.3", "heartbeat_s=0.1", "grace_s=5")
    wait_until_it_says(worker, "running 0")
    if how == "replaced":
        shutil.copy(file, file.with_suffix(".copy"))
        file.with_suffix(".copy").rename(file)
    else:
        file.unlink()
    ends_with_one_line(worker, "the file was removed or replaced")
    assert file.exists() == (how == "replaced"), "no empty database is left"


def test_what_a_process_would_store_with_a_deleted_study_goes_into_no_other(url: str) -> None:
    storage = open_storage(url)
    optuna.create_study(storage=storage, study_name="first")
    study = load_study(storage, "first")
    storage.identify(study._study_id)
    study.set_user_attr("of", "the first")
    elsewhere = open_storage(url)
    optuna.delete_study(study_name="first", storage=elsewhere)
    following = optuna.create_study(storage=elsewhere, study_name="second")
    with pytest.raises(StudyGoneError, match="study first was deleted"):
        study.set_user_attr("confirmed", "the first")
    with pytest.raises(StudyGoneError, match="study first was deleted"):
        storage.claim(study._study_id, None)
    with pytest.raises(StudyGoneError):
        storage.join(study._study_id)
    assert following.user_attrs == {}
    assert following.trials == []


def test_a_study_keeps_its_identity(url: str) -> None:
    first, second = open_storage(url), open_storage(url)
    study_id = optuna.create_study(storage=first, study_name="one")._study_id
    first.identify(study_id)
    second.identify(study_id)  # another worker, or this one after a restart
    assert (first.join(study_id), second.join(study_id)) == (0, 1)
    assert issubclass(StudyGoneError, UserError)


def test_a_study_to_which_a_trial_is_added_meanwhile_is_deleted(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna takes the error of a trial that came between for none, and leaves the study."""
    storage = open_storage(url)
    study_id = storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "busy")
    delete, tried = storage.rdb.delete_study, []

    def once_in_vain(study_id: int) -> None:
        tried.append(study_id)
        if len(tried) > 1:
            delete(study_id)

    monkeypatch.setattr(storage.rdb, "delete_study", once_in_vain)
    storage.delete_study(study_id)
    assert len(tried) == 2
    assert "busy" not in {s.study_name for s in storage.get_all_studies()}
