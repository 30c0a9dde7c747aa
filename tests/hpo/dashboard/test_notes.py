"""Notes and plots that the dashboard makes when somebody looks: what they are, when, how often."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, create_trial

from finetune.recipe import Recipe
from hpo.dashboard import notes as notes_module
from hpo.dashboard.app import LiveDashboard
from hpo.dashboard.attrs import NOTE_TEXT, NOTE_VERSION, NOTE_VERSION_OF_WORKER, PLOT
from hpo.dashboard.server import Address, guard
from hpo.storage.open import load_study, open_storage
from hpo.storage.rdb import StudyStorage
from hpo.study.config import load_study_file
from tests.hpo.configs import make_config

REPO = Path(__file__).parents[3]
Ask = Callable[..., Any]
HERE = Address("127.0.0.1", "127.0.0.1", 8080, socket.AF_INET)
SPACE = {"lr": FloatDistribution(1e-4, 1e-1, log=True)}


def finished(loss: float, lr: float = 1e-3) -> FrozenTrial:
    """A complete, feasible trial of one call."""
    call = {"instance": "r/0", "loss": loss, "standard_error": 0.001, "seconds": 9.0}
    return create_trial(
        value=loss,
        params={"lr": lr},
        distributions=SPACE,
        user_attrs={
            "outcome": "complete",
            "recipe": Recipe(lr=lr).to_json(),
            "instances": [{**call, "steps": 3, "curve": []}],
            "standard_error": 0.001,
            "longest_call_s": 9.0,
        },
        intermediate_values={1: loss},
    )


class Shown:
    """A study, and what the dashboard shows of it."""

    def __init__(self, url: str, ask: Ask, name: str = "s") -> None:
        self.url, self._ask = url, ask
        self.config = make_config(
            name=name, about="About *it*.", storage=url, instances={"source": "omniglot"}
        )
        self.storage: StudyStorage = open_storage(url, worker="me")
        self.storage.create_study(name, {"manifest": {"code": "abc"}}, [])
        self.study = load_study(self.storage, name)
        self.live = LiveDashboard(url, name, "start", None, self.config, "studies/s.toml")
        self.app = guard(self.live, HERE, allow_writes=True)

    def add(self, loss: float, **more: Any) -> None:
        self.study.add_trial(finished(loss, **more))

    def detail(self) -> dict[str, Any]:
        # optuna-dashboard keeps the trials that it read for seconds.
        self.live.app._inmemory_cache.clear()  # type: ignore[attr-defined]
        found: dict[str, Any] = self._ask(self.app, f"/api/studies/{self.study._study_id}").json
        return found

    @property
    def note(self) -> str:
        return str(self.detail()["note"]["body"])

    @property
    def plots(self) -> dict[str, Any]:
        shown = self.detail()["plotly_graph_objects"]
        return {plot["id"]: json.loads(plot["graph_object"]) for plot in shown}

    def write(self, text: str) -> None:
        """As a person does in the dashboard."""
        version = self.detail()["note"]["version"]
        path = f"/api/studies/{self.study._study_id}/note"
        content = {"version": version + 1, "body": text}
        assert self._ask(self.app, path, "PUT", content).status == 204


@pytest.fixture
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What changed is computed at once, however long the last time took."""
    monkeypatch.setattr(notes_module, "_REST", 0.0)
    monkeypatch.setattr(notes_module, "_WAIT_S", 60.0)
    monkeypatch.setattr(notes_module, "_FIRST_WAIT_S", 60.0)


@pytest.fixture
def shown(new_database: Callable[[str], str], ask: Ask) -> Iterator[Shown]:
    made = Shown(new_database("sqlite"), ask)
    yield made
    made.live.close()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of trials of each story that is computed."""
    counts: list[int] = []
    whole = notes_module.report_of

    def counting(data: Any) -> Any:
        counts.append(len(data.runs))
        return whole(data)

    monkeypatch.setattr(notes_module, "report_of", counting)
    return counts


@pytest.mark.usefixtures("no_rest")
class TestStory:
    def test_of_an_empty_study_says_what_to_wait_for(self, shown: Shown) -> None:
        note = shown.note
        assert "No trial has finished yet" in note
        assert "python -m hpo.worker --study studies/s.toml" in note
        assert "hpo.confirm" not in note
        assert shown.plots == {}

    def test_follows_the_study(self, url: str, ask: Ask) -> None:
        shown = Shown(url, ask)
        shown.add(0.119)
        assert "Trial 0 has the lowest loss so far: 0.1190 ± 0.0010, 2 points" in shown.note
        shown.add(0.0875)
        note = shown.note
        assert "About \\*it\\*." in note
        assert "Trial 1 has the lowest loss so far: 0.0875 ± 0.0010, 5 points" in note
        assert "| code | abc |" in note
        (best,) = [plot for name, plot in shown.plots.items() if name.endswith("best-so-far")]
        assert best["layout"]["title"]["text"] == "Best loss so far against compute"
        shown.study.set_user_attr("confirmed", {"loss": 0.08})
        assert "confirm again by" in shown.note
        shown.live.close()

    def test_is_not_computed_again_while_nothing_changes(
        self, shown: Shown, computed: list[int]
    ) -> None:
        shown.add(0.1)
        for _ in range(3):
            shown.detail()
        assert computed == [1]
        shown.add(0.2)
        for _ in range(3):
            shown.detail()
        assert computed == [1, 2]
        running = shown.storage.claim(shown.study._study_id, None)
        assert isinstance(running, int)
        for step in range(3):  # what a running trial reports is none of it
            shown.storage.set_trial_intermediate_value(running, step, 0.5)
            shown.detail()
        assert computed == [1, 2, 3]

    def test_a_persons_note_stays_until_it_is_emptied(self, shown: Shown) -> None:
        shown.add(0.1)
        shown.write("mine")
        assert shown.note == "mine"
        shown.add(0.2)
        assert shown.note == "mine"
        assert shown.plots
        shown.write("")
        assert "Trial 0 has the lowest loss" in shown.note

    def test_replaces_what_older_workers_stored(self, shown: Shown) -> None:
        stored = {
            NOTE_VERSION: 3,
            f"{NOTE_TEXT}0": "old story",
            NOTE_VERSION_OF_WORKER: 3,
            f"{PLOT}hpo-1-compute:0": "{}",
            f"{PLOT}mine:0": "{}",
        }
        for key, value in stored.items():
            shown.storage.set_study_system_attr(shown.study._study_id, key, value)
        shown.add(0.1)
        assert "old story" not in shown.note
        plots = shown.plots
        assert "mine" in plots and "hpo-1-compute" not in plots
        shown.write("a person's")  # on top of the worker's
        assert shown.note == "a person's"

    def test_of_another_study_needs_its_file(
        self, shown: Shown, ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        shown.storage.create_study("other", {}, [])
        other = load_study(shown.storage, "other")
        other.add_trial(finished(0.1))
        shown.storage.set_study_system_attr(other._study_id, NOTE_VERSION, 1)
        shown.storage.set_study_system_attr(other._study_id, f"{NOTE_TEXT}0", "stored")
        path = f"/api/studies/{other._study_id}"
        monkeypatch.chdir(tmp_path)
        answer = ask(shown.app, path).json
        assert (answer["note"]["body"], answer["plotly_graph_objects"]) == ("stored", [])
        assert answer["trials"][0]["note"]["body"].startswith("## Trial 0: complete")
        shown.storage.set_study_system_attr(other._study_id, f"{NOTE_TEXT}0", "")
        (tmp_path / "studies").mkdir()
        text = (REPO / "studies" / "quickstart.toml").read_text()
        (tmp_path / "studies" / "other.toml").write_text(
            text.replace('name = "quickstart"', 'name = "other"')
        )
        answer = ask(shown.app, path).json
        assert "python -m hpo.confirm --study other" in answer["note"]["body"]

    def test_what_goes_wrong_is_said_once_and_the_trials_are_shown(
        self, shown: Shown, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines: list[str] = []
        monkeypatch.setattr(notes_module, "warn", lines.append)
        monkeypatch.setattr(notes_module, "report_of", lambda data: 1 / 0)
        for loss in (0.1, 0.2):
            shown.add(loss)
            assert shown.note == ""
        assert len(shown.detail()["trials"]) == 2
        (line,) = lines
        assert "ZeroDivisionError" in line


class TestComputing:
    def test_rests_before_it_computes_again(
        self, shown: Shown, computed: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(notes_module, "_REST", 1e6)
        shown.add(0.1)
        first = shown.note
        shown.add(0.05)
        assert shown.note == first
        assert computed == [1]
        assert len(shown.detail()["trials"]) == 2  # the trials are those that there are

    def test_is_done_once_for_many_who_look_and_keeps_none_of_them(
        self, shown: Shown, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(notes_module, "_FIRST_WAIT_S", 0.1)
        go_on, lock = threading.Event(), threading.Lock()
        at_once, most = [0], [0]
        whole = notes_module.report_of

        def slow(data: Any) -> Any:
            with lock:
                at_once[0] += 1
                most[0] = max(most[0], at_once[0])
            assert go_on.wait(60)
            with lock:
                at_once[0] -= 1
            return whole(data)

        monkeypatch.setattr(notes_module, "report_of", slow)
        shown.add(0.1)
        answers: list[dict[str, Any]] = []
        threads = [
            threading.Thread(target=lambda: answers.append(shown.detail())) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [len(a["trials"]) for a in answers] == [1] * 4
        assert [a["note"]["body"] for a in answers] == [""] * 4  # not known yet
        go_on.set()
        deadline = time.monotonic() + 60
        while not shown.note and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "Trial 0 has the lowest loss" in shown.note
        assert most == [1]


def test_the_plain_dashboard_shows_trials_but_neither_notes_nor_plots(
    shown: Shown, ask: Ask
) -> None:
    import optuna_dashboard

    shown.add(0.1)
    assert shown.note
    app = optuna_dashboard.wsgi(optuna.storages.RDBStorage(shown.url))
    answer = ask(app, "/api/studies/1").json
    assert [t["values"] for t in answer["trials"]] == [[0.1]]
    assert answer["note"]["body"] == answer["trials"][0]["note"]["body"] == ""
    assert answer["plotly_graph_objects"] == []


@pytest.mark.parametrize("name", ["runes-default", "runes-short", "runes-seeds"])
def test_published_studies_have_notes_and_plots(name: str, ask: Ask) -> None:
    from hpo.storage.compressed import unpacked

    config = load_study_file(name)
    with unpacked(str(REPO / "studies" / "results" / f"{name}.db.gz")) as url:
        live = LiveDashboard(url, config.name, "start", None, config, name)
        try:
            live.prepare()
            answer = ask(guard(live, HERE), "/api/studies/1").json
        finally:
            live.close()
    note = answer["note"]["body"]
    assert "has the lowest loss so far" in note or "is the best one, measured again" in note
    assert any(p["id"].startswith("hpo-") for p in answer["plotly_graph_objects"])
    for trial in answer["trials"]:
        if trial["state"] == "Waiting":
            continue
        assert trial["note"]["body"].startswith(f"## Trial {trial['number']}: ")
