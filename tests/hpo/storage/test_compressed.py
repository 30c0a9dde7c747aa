"""Compressed databases: looked at by one command, and never written."""

from __future__ import annotations

import gzip
import itertools
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
import waitress

from hpo.analysis import importance
from hpo.dashboard.__main__ import main as dashboard
from hpo.errors import UserError
from hpo.status import main as status
from hpo.storage.compressed import is_published, unpacked
from hpo.storage.open import load_study, looked_at, open_storage
from hpo.storage.tables import SYSTEM_ATTRS, WORKER_KEY
from hpo.storage.url import shown

REPO = Path(__file__).parents[3]
PUBLISHED = REPO / "studies" / "results" / "runes-default.db.gz"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A database with an empty study ``s``, compressed."""
    storage = open_storage(f"sqlite:///{tmp_path}/s.db")
    storage.create_study("s", {"about": "x"}, [])
    with storage.engine.connect() as c:
        c.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    storage.engine.dispose()
    packed = tmp_path / "s.db.gz"
    with (tmp_path / "s.db").open("rb") as plain, gzip.open(packed, "wb") as out:
        shutil.copyfileobj(plain, out)
    return packed


@pytest.mark.parametrize(
    ("storage", "is_one"),
    [
        ("runes.db.gz", True),
        ("sqlite:///runes.db.gz", True),
        ("sqlite:////a/runes.db.gz", True),
        ("sqlite:///runes.db", False),
        ("postgresql://me@host/runes.gz", False),
    ],
)
def test_what_counts_as_a_compressed_database(storage: str, is_one: bool) -> None:
    assert is_published(storage) is is_one


def test_other_storages_are_given_back_as_they_are() -> None:
    with unpacked("postgresql://me@host/runes") as url:
        assert url == "postgresql://me@host/runes"


@pytest.mark.parametrize("prefix", ["", "sqlite:///"])
def test_a_copy_is_opened_and_goes_afterwards(published: Path, prefix: str) -> None:
    before = published.read_bytes()
    with looked_at(f"{prefix}{published}", "s") as storage:
        study = load_study(storage, "s")
        study.set_user_attr("written", 1)  # to the copy
        copy = Path(str(storage.engine.url.database))
        assert copy.is_file()
    assert not copy.parent.exists()
    assert published.read_bytes() == before


def test_errors_name_the_file_that_the_person_named(published: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError) as error,
        looked_at(str(published), "t") as storage,
    ):
        load_study(storage, "t")
    assert str(error.value) == f"{published} has no study 't'; it has: s"
    nothing = tmp_path / "nothing.db.gz"
    nothing.write_bytes(gzip.compress(b"this is no database, however long it may be" * 100))
    with pytest.raises(UserError) as error, looked_at(str(nothing), "s"):
        pass
    assert str(error.value).startswith(f"can't open {nothing}: file is not a database")


def test_what_is_no_gzip_file_is_one_line(published: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.db\.gz can't be unpacked: No such file"):
        looked_at(f"{tmp_path}/no.db.gz", "s").__enter__()
    cut = tmp_path / "cut.db.gz"
    cut.write_bytes(published.read_bytes()[:-20])
    plain = tmp_path / "plain.db.gz"
    plain.write_text("plain")
    for path in (cut, plain):
        with pytest.raises(UserError, match="can't be unpacked: it is no whole gzip file"):
            looked_at(str(path), "s").__enter__()


def test_who_would_write_is_refused(published: Path) -> None:
    with pytest.raises(UserError, match=r"s\.db\.gz is compressed.*; unpack it by gunzip"):
        open_storage(f"sqlite:///{published}")
    command = ["--study", "quickstart", "--storage", str(published), "--port", "0"]
    with pytest.raises(UserError, match=r"--allow-writes: .* only a copy of it is shown"):
        dashboard([*command, "--allow-writes"])


def test_status_and_dashboard_open_the_published_study(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(importance, "_RESAMPLES", 3)  # of errors that nobody looks at here
    assert status(["--study", "runes-default", "--storage", str(PUBLISHED)]) == 0
    assert capsys.readouterr().out.startswith(f"study       runes-default in {PUBLISHED}\n")
    assert shown(str(PUBLISHED)) == str(PUBLISHED)

    class Server:
        def run(self) -> None:
            print("served")

    def create(app: Callable[..., object], **_: object) -> Server:
        return Server()

    monkeypatch.setattr(waitress, "create_server", create)
    assert dashboard(["--study", "runes-default", "--storage", str(PUBLISHED), "--port", "0"]) == 0
    said = capsys.readouterr().out
    assert f"study runes-default in {PUBLISHED}, read-only" in said
    assert "does not exist yet" not in said
    assert said.endswith("served\n")


def test_a_copy_goes_though_a_thread_adds_files_to_it(published: Path) -> None:
    """As one of a stopped server does that opens the copy while its directory is removed."""
    stop = threading.Event()

    def add(directory: Path) -> None:
        for i in itertools.count():
            if stop.is_set():
                return
            with suppress(OSError):
                (directory / f"s.db-{i}").touch()

    with unpacked(str(published)) as url:
        directory = Path(url.removeprefix("sqlite:///")).parent
        threads = [threading.Thread(target=add, args=(directory,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    assert not directory.exists()


def test_a_published_study_shows_no_bookkeeping() -> None:
    with looked_at(str(PUBLISHED), "runes-default") as storage:
        trials = load_study(storage, "runes-default").get_trials(deepcopy=False)
        with storage.engine.connect() as c:
            owners = sa.select(SYSTEM_ATTRS.c.trial_id).where(SYSTEM_ATTRS.c.key == WORKER_KEY)
            assert set(c.execute(owners).scalars()) & {t._trial_id for t in trials}
    assert not any(WORKER_KEY in t.system_attrs for t in trials)
