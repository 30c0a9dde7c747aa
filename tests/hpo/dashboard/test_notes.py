"""A study's note and plots: what they say, who writes them and how often."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from finetune.recipe import Recipe
from hpo.analysis import importance
from hpo.analysis.groups import AUGMENTATIONS, outcomes
from hpo.analysis.references import Reference
from hpo.dashboard import notes as refresh_module
from hpo.dashboard.attrs import NOTE_TEXT, NOTE_VERSION, PLOT
from hpo.dashboard.notes import Story
from hpo.report import summary_markdown as story_module
from hpo.report.plotly import MOST_POINTS
from hpo.storage.open import load_study, open_storage
from hpo.storage.rdb import StudyStorage
from hpo.study.config import StudyConfig
from hpo.study.confirmation import CALLS_PREFIX

LR = FloatDistribution(1e-4, 1e-1, log=True)
SPACE: dict[str, BaseDistribution] = {
    "lr": LR,
    "rotation_deg": FloatDistribution(0.0, 15.0),
    "render": CategoricalDistribution(["rebuilt", "direct"]),
}
CONFIRMED = {
    "name": "best 1",
    "trial": 1,
    "digest": "w",
    "loss": 0.0871,
    "standard_error": 0.002,
    "recipe": {},
    "units": 2,
    "instances": ["a/1 bilinear", "b/1 bilinear"],
    "against": {
        "default": {
            **{"name": "default", "trial": None, "digest": "d"},
            **{"difference": -0.004, "low": -0.006, "high": -0.002},
        }
    },
    "table": [
        {
            **{"name": name, "trial": trial, "digest": digest, "loss": loss, "left": "finalist"},
            **{"standard_error": 0.002, "calls": 2, "rounds": 1, "longest_call_s": 9.0},
        }
        for name, trial, digest, loss in (
            ("default", None, "d", 0.0911),
            ("best 1", 1, "w", 0.0871),
        )
    ],
}
MANIFEST = {
    "data": "omniglot abc",
    "networks": "unet_1:net",
    "instances": "bilinear r/0@unet_1 s/0@unet_1",
}


def finished(loss: float, queued: bool = False, slow: bool = False, **params: Any) -> FrozenTrial:
    """A trial of one call; by default it is complete and feasible."""
    params = {"lr": 1e-3, "rotation_deg": 5.0, "render": "rebuilt", **params}
    recipe = Recipe(lr=params["lr"])
    call = {"instance": "r/0", "loss": loss, "standard_error": 0.001, "seconds": 9.0}
    return create_trial(
        state=TrialState.PRUNED if slow else TrialState.COMPLETE,
        value=loss,
        params=params,
        distributions=SPACE,
        user_attrs={
            "outcome": "infeasible" if slow else "complete",
            "recipe": recipe.to_json(),
            "instances": [{**call, "steps": 3, "curve": []}],
            "standard_error": 0.001,
            "longest_call_s": 140.0 if slow else 9.0,
        },
        system_attrs={
            **({"fixed_params": params} if queued else {}),
            **({"constraints:seconds over the limit": 20.0} if slow else {}),
        },
        intermediate_values={1: loss},
    )


class Told:
    """A study, and what its dashboard would show of it."""

    def __init__(self, url: str, source: str = "omniglot") -> None:
        self.config = StudyConfig.model_validate(
            {
                "name": "s",
                "about": "About *it*.",
                "storage": url,
                "instances": {"source": source},
                "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}},
            }
        )
        self.storage: StudyStorage = open_storage(url, worker="me")
        self.storage.create_study("s", {"manifest": {"code": "abc"}}, [])
        self.study = load_study(self.storage, "s")
        self.id = self.study._study_id

    def add(self, loss: float, **more: Any) -> None:
        self.study.add_trial(finished(loss, **more))

    def story(self) -> Story:
        return Story(self.config, "studies/s.toml", self.config.storage, self.study, self.storage)

    def refresh(self) -> None:
        assert self.story().refresh(every_s=0.0)

    @property
    def attrs(self) -> dict[str, Any]:
        return self.storage.get_study_system_attrs(self.id)

    @property
    def note(self) -> str:
        from optuna_dashboard._note import get_note_from_system_attrs

        return str(get_note_from_system_attrs(self.attrs, None)["body"])

    @property
    def plots(self) -> dict[str, Any]:
        from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

        return {k: json.loads(v) for k, v in get_plotly_graph_objects(self.attrs).items()}


@pytest.fixture
def told(new_database: Callable[[str], str]) -> Told:
    return Told(new_database("sqlite"))


class TestNote:
    def test_of_an_empty_study_says_what_to_wait_for(self, told: Told) -> None:
        told.refresh()
        assert "0 trials finished" in told.note
        assert "No trial is complete and feasible yet" in told.note
        assert "python -m hpo.worker --study studies/s.toml" in told.note
        assert "hpo.confirm" not in told.note
        assert told.plots == {}

    def test_has_the_best_against_the_starts_and_the_authors_points(self, told: Told) -> None:
        told.add(0.119, queued=True)
        told.add(0.0875)
        told.add(0.05, slow=True)
        told.refresh()
        assert "About \\*it\\*." in told.note
        assert "| best: trial 1 | 0.0875 ± 0.0010 | 5 | 9.0 s |" in told.note
        assert "| start: trial 0 | 0.1190 ± 0.0010 | 2 | 9.0 s |" in told.note
        assert "6 up to 0.083" in told.note
        assert "0.05" not in told.note.split("## What to do next")[0].split("by the author")[0]
        assert "1 of 3 trials were not feasible" in told.note
        assert "18 more complete trials are needed" in told.note
        assert "| code | abc |" in told.note
        assert "python -m hpo.confirm --study studies/s.toml" in told.note

    def test_has_what_is_confirmed(self, told: Told) -> None:
        told.add(0.119)
        told.add(0.0875)
        told.study.set_user_attr("confirmed", CONFIRMED)
        told.refresh()
        assert "**Confirmed: best 1 (trial 1)**, on 2 instances" in told.note
        lines = told.note.splitlines()
        winner = lines.index("| best 1 (trial 1) | 0.0871 ± 0.0020 | 5 | 2 |")
        assert lines[winner + 1] == "| default | 0.0911 ± 0.0020 | 4 | 2 |"
        assert (
            "Against the default recipe: -0.0040 (95 % interval -0.0060 to -0.0020)." in told.note
        )
        assert "--confirmed --out finetune.py" in told.note

    def test_has_the_public_recipes_on_the_same_drawings(
        self, told: Told, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def rows(path: None) -> list[Reference]:
            labels = {"r/0": 0.1, "a/1": 0.2, "b/1": 0.3}
            return [
                Reference("A", "abc", "net", label, "bilinear", loss, 0.001)
                for label, loss in labels.items()
            ]

        monkeypatch.setattr(story_module, "read_references", rows)
        told.study.set_user_attr("manifest", MANIFEST)
        told.add(0.08)
        told.refresh()
        assert "| A | 1 | 0.1000 | 0.0800 | -0.0200 (not known) | 0.800 |" in told.note
        calls = {"a/1 bilinear": 0.0841, "b/1 bilinear": 0.0901}
        for label, loss in calls.items():
            told.study.set_user_attr(f"{CALLS_PREFIX}w:{label}", {"loss": loss})
        told.study.set_user_attr("confirmed", CONFIRMED)
        told.refresh()
        (row,) = [line for line in told.note.splitlines() if line.startswith("| A | 2 |")]
        assert row.startswith("| A | 2 | 0.2500 | 0.0871 | -0.1629 (-")
        told.study.set_user_attr("manifest", {**MANIFEST, "data": "omniglot other"})
        told.refresh()
        assert "reference" not in told.note

    def test_of_a_confirmation_by_another_release_says_so(self, told: Told) -> None:
        told.add(0.1)
        told.study.set_user_attr("confirmed", {"loss": 0.08})
        told.refresh()
        assert "confirm again by python -m hpo.confirm" in told.note
        assert "--confirmed" not in told.note

    def test_has_importances_with_their_errors(self, told: Told) -> None:
        rng = random.Random(1)
        for _ in range(40):
            lr = 10 ** rng.uniform(-4, -1)
            told.add(0.1 + lr, lr=lr, rotation_deg=rng.uniform(0, 15))
        told.refresh()
        row = next(line for line in told.note.splitlines() if line.startswith("| lr |"))
        share, _, error = row.strip("| ").split("|")[-1].split()
        assert float(share) > 0.5
        assert 0 < float(error) < 0.5

    def test_of_drawn_runes_gives_no_points(self, new_database: Callable[[str], str]) -> None:
        told = Told(new_database("sqlite"), source="drawn")
        told.add(0.08)
        told.refresh()
        assert "| best: trial 0 | 0.0800 ± 0.0010 | – | 9.0 s |" in told.note
        assert "thresholds do not apply" in told.note


class TestPlots:
    def test_show_the_study_and_stay_small(
        self, told: Told, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rng = random.Random(1)
        trials = []
        for i in range(3 * MOST_POINTS):
            lr = 10 ** rng.uniform(-4, -1)
            render = rng.choice(["rebuilt", "direct"])
            loss = 0.1 + lr + (0.05 if render == "direct" else 0.0)
            rotation = rng.uniform(0, 15)
            trials.append(
                finished(loss, slow=i % 9 == 8, lr=lr, render=render, rotation_deg=rotation)
            )
            trials[-1].number = i
        monkeypatch.setattr(importance, "_RESAMPLES", 3)  # of errors that nobody looks at here
        # To store them takes longer than all the rest.
        monkeypatch.setattr(told.study, "get_trials", lambda **_: trials)
        told.refresh()
        plots = told.plots
        assert sorted(plots) == [
            "hpo-1-compute",
            "hpo-2-seconds",
            "hpo-3-slices",
            "hpo-4-runes",
            "hpo-5-augmentations",
        ]
        for key, text in told.attrs.items():
            if key.startswith(PLOT):
                assert len(text) < 60_000, key
        for plot in plots.values():
            assert all(len(trace["y"]) <= MOST_POINTS for trace in plot["data"] if "y" in trace)
        best = min(t.value for t in trials if t.state == TrialState.COMPLETE and t.value)
        cloud, line = plots["hpo-1-compute"]["data"]
        assert min(cloud["y"]) == line["y"][-1] == pytest.approx(best, rel=1e-3)
        assert line["y"] == sorted(line["y"], reverse=True)
        names = [trace["name"] for trace in plots["hpo-2-seconds"]["data"]]
        assert names == ["feasible", "the best in its time", "too slow"]
        assert plots["hpo-3-slices"]["layout"]["xaxis"]["type"] in ("log", "category")

    def test_of_augmentations_find_the_one_that_harms(self) -> None:
        rng = random.Random(1)
        trials = [
            finished(0.1 * factor + rng.gauss(0, 1e-4), render=render)
            for factor, render in [(1.0, "rebuilt"), (1.2, "direct")] * 30
        ]
        direct, rebuilt = outcomes(trials, "render")
        assert (direct.label, direct.n, rebuilt.n) == ("direct", 30, 30)
        assert direct.difference - rebuilt.difference == pytest.approx(0.182, abs=0.005)
        assert 0 < direct.standard_error < 0.01
        assert outcomes(trials, "rotation_deg") == []  # it did not vary

    def test_of_augmentations_know_all_that_a_recipe_has(self) -> None:
        fields = [f.name for f in dataclasses.fields(Recipe)]
        assert tuple(fields[fields.index("render") : fields.index("seed")]) == AUGMENTATIONS

    def test_that_have_nothing_to_show_any_more_go(self, told: Told) -> None:
        told.storage.set_study_system_attr(told.id, f"{PLOT}hpo-9-old:0", "{}")
        told.storage.set_study_system_attr(told.id, f"{PLOT}mine:0", "{}")
        told.add(0.1)
        told.refresh()
        assert "hpo-9-old" not in told.plots
        assert {"mine", "hpo-1-compute"} <= set(told.plots)


class TestTurns:
    def test_one_worker_in_a_minute(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        told = Told(url)
        now = [1000.0]
        monkeypatch.setattr(refresh_module.time, "time", lambda: now[0])
        mine, other = told.story(), told.story()
        assert mine.refresh()
        told.add(0.1)
        for now[0] in (1000.0, 1059.0):
            assert not mine.refresh()
            assert not other.refresh()
        assert "0 trials finished" in told.note
        now[0] = 1061.0
        assert other.refresh()
        assert not mine.refresh()
        assert "1 trial finished" in told.note
        now[0] = 500.0  # a clock that was set back
        assert mine.refresh()

    def test_a_persons_note_stays_until_it_is_emptied(self, told: Told) -> None:
        from optuna_dashboard import save_note

        told.refresh()
        save_note(told.study, "Mine. " * 1000)
        told.add(0.1)
        told.refresh()
        assert told.note == "Mine. " * 1000
        assert told.plots
        save_note(told.study, "")
        told.refresh()
        assert "1 trial finished" in told.note
        assert sum(key.startswith(NOTE_TEXT) for key in told.attrs) == 1
        before = told.attrs[NOTE_VERSION]
        told.refresh()
        assert told.attrs[NOTE_VERSION] == before + 1  # pages that are open take it

    def test_what_goes_wrong_is_told_once(
        self, told: Told, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines: list[str] = []
        monkeypatch.setattr(refresh_module, "warn", lines.append)
        monkeypatch.setattr(refresh_module, "study_note", lambda *_: 1 / 0)
        story = told.story()
        assert not story.refresh(every_s=0.0)
        assert not story.refresh(every_s=0.0)
        assert len(lines) == 1
        assert "ZeroDivisionError" in lines[0]


def test_a_worker_writes_the_story(new_database: Callable[[str], str]) -> None:
    from hpo.study.config import Budget, Recovery
    from hpo.worker.display import Display
    from hpo.worker.loop import Loop, Watch

    told = Told(new_database("sqlite"))

    def run(trial: optuna.Trial, watch: Watch) -> float:
        return trial.suggest_float("lr", 1e-4, 1e-1, log=True)

    with Display("s", None, 0) as display:
        Loop(
            told.study,
            told.storage,
            run,
            Budget(trials=2),
            Recovery(),
            display,
            after=told.story().refresh,
        ).work()
    assert "1 trial finished" in told.note  # the second came within the minute
