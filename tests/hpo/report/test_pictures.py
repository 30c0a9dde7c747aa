"""Artifacts as pictures: PNG only, small, few; what is left out is told."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.trial import TrialState
from PIL import Image

from hpo.artifacts.store import open_store
from hpo.report.sections import pictures
from hpo.report.sections.pictures import Found, read_pictures
from hpo.study.confirmation import CONFIRMED_KEY
from tests.hpo.stored import make_confirmation


def png(width: int = 28, height: int = 28, noise: bool = False) -> bytes:
    image = Image.effect_noise((width, height), 100) if noise else Image.new("L", (width, height))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


class Case:
    """A study in memory with a store of artifacts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = FileSystemArtifactStore(directory)
        self.study = optuna.create_study()

    def trial(self, loss: float, *files: tuple[str, bytes, str]) -> None:
        trial = self.study.ask()
        for name, content, kind in files:
            path = self.directory.parent / name
            path.write_bytes(content)
            upload_artifact(
                artifact_store=self.store, file_path=str(path), study_or_trial=trial, mimetype=kind
            )
        self.study.tell(trial, loss)

    def meta(self, **fields: Any) -> None:
        """A trial with an artifact as anybody may write it into the database."""
        meta = {"artifact_id": "x", "filename": "x.png", "mimetype": "image/png", "encoding": None}
        number = len(self.study.trials)
        system = {f"artifacts:{number}": json.dumps({**meta, **fields})}
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE, value=0.1 + number, system_attrs=system
            )
        )

    def read(self) -> Found:
        return read_pictures(self.study, self.study.trials, open_store(str(self.directory)))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    (tmp_path / "store").mkdir()
    return Case(tmp_path / "store")


def test_the_pictures_of_the_best_trials_come_in_order(case: Case) -> None:
    small = png()
    case.trial(0.3, ("worse.png", small, "image/png"))
    case.trial(0.1, ("b.png", small, "image/png"), ("a.png", png(40, 20), "image/png"))
    case.trial(0.2, ("page.html", b"<script>", "text/html"), ("x.svg", b"<svg/>", "image/svg+xml"))
    found = case.read()
    assert [p.name for p in found.pictures] == [
        "trial 1: a.png", "trial 1: b.png", "trial 0: worse.png",
    ]  # fmt: skip
    assert (found.pictures[0].width, found.pictures[0].height) == (40, 20)
    kind, _, content = found.pictures[1].uri.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == small
    assert found.remarks == []


def test_the_confirmed_trials_come_first(case: Case) -> None:
    for loss in (0.1, 0.2, 0.3, 0.4, 0.5):
        case.trial(loss, (f"{loss}.png", png(), "image/png"))
    case.study.set_user_attr(CONFIRMED_KEY, make_confirmation(4).to_json())
    assert [p.name for p in case.read().pictures] == [
        "trial 4: 0.5.png", "trial 0: 0.1.png", "trial 1: 0.2.png", "trial 2: 0.3.png",
    ]  # fmt: skip


def test_what_is_missing_broken_or_no_png_is_told(case: Case) -> None:
    case.trial(0.1, ("gone.png", png(), "image/png"))
    for file in case.directory.iterdir():
        file.unlink()
    case.trial(0.2, ("cut.png", png(noise=True)[:-200], "image/png"))
    bomb = bytearray(png())
    bomb[16:24] = 2 * (100_000).to_bytes(4)  # its size in pixels, as it says
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4)
    lie = b"<script>alert(1)</script>"
    case.trial(0.3, ("lie.png", lie, "image/png"), ("vast.png", bytes(bomb), "image/png"))
    found = case.read()
    assert not found.pictures
    first, second, third, last = found.remarks
    assert first.startswith("trial 1: cut.png was left out: it is no whole PNG")
    assert second.startswith("trial 2: lie.png was left out: it is no whole PNG")
    assert third == "trial 2: vast.png was left out: it is no whole PNG (DecompressionBombError)."
    assert last == "1 picture was left out: not where the study's artifacts are kept."


def test_a_store_that_is_away_is_asked_once(case: Case) -> None:
    class Away:
        asked = 0

        def open_reader(self, artifact_id: str) -> BinaryIO:
            self.asked += 1
            raise OSError("no route to secret-host")

        def write(self, artifact_id: str, content_body: BinaryIO) -> None: ...

        def remove(self, artifact_id: str) -> None: ...

    for loss in (0.1, 0.2):
        case.trial(loss, ("a.png", png(), "image/png"), ("b.png", png(), "image/png"))
    store = Away()
    found = read_pictures(case.study, case.study.trials, store)
    assert store.asked == 1
    assert found.remarks == [
        "trial 0: a.png was left out, and all after it: the store does not answer."
    ]


def test_where_nothing_is_kept_nothing_is_said(case: Case) -> None:
    case.trial(0.1, ("a.png", png(), "image/png"))
    assert read_pictures(case.study, case.study.trials, None) == Found()


@pytest.mark.parametrize("identifier", ["../secret.png", "/etc/passwd", "", ".", "\x00", 7])
def test_an_identifier_never_leads_out_of_the_directory(case: Case, identifier: object) -> None:
    (case.directory.parent / "secret.png").write_bytes(png())
    case.meta(artifact_id=identifier)
    found = case.read()
    assert not found.pictures
    assert len(found.remarks) == 1
    assert "was left out" in found.remarks[0]


def test_a_list_that_is_none_is_told(case: Case) -> None:
    system = {"artifacts:1": "no JSON"}
    case.study.add_trial(optuna.trial.create_trial(value=0.1, system_attrs=system))
    assert case.read().remarks == ["The list of artifacts of trial 0 can't be read."]


def test_large_and_many_pictures_are_left_out(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    large = png(600, 600, noise=True)
    assert len(large) > pictures.MOST_BYTES
    case.trial(0.1, ("large.png", large, "image/png"), ("wide.png", png(5000, 1), "image/png"))
    some = png(100, 100, noise=True)
    case.trial(0.2, *((f"{i}.png", some, "image/png") for i in range(4)))
    monkeypatch.setattr(pictures, "MOST_ALL_BYTES", 3 * len(some))
    found = case.read()
    assert [p.name for p in found.pictures] == [f"trial 1: {i}.png" for i in range(3)]
    assert found.remarks == [
        "trial 0: large.png was left out: it is larger than 250 kB.",
        "trial 0: wide.png was left out: it is 5000 by 1 pixels.",
        "1 picture was left out: the page has as many as it may.",
    ]
