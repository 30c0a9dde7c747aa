"""Studies as the service leaves them, made in a moment: recipes with a loss by formula."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import html5lib
import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from benchmarks import storage_fill
from finetune.recipe import Recipe
from hpo.analysis import importance
from hpo.analysis.intervals import units_of
from hpo.analysis.references import Reference
from hpo.confirm.candidates import choose_candidates
from hpo.confirm.halving import block_ends, halve
from hpo.confirm.result import result_of
from hpo.report.data import StudyData
from hpo.storage import tables as db
from hpo.storage.open import load_study, open_storage
from hpo.study.config import StudyConfig, load_study_file
from hpo.study.confirmation import CALLS_PREFIX, CONFIRMED_KEY
from hpo.study.manifest import MADE_BY_KEY, MANIFEST_KEY
from hpo.study.space import sample_values
from hpo.trial.ranking import FAILED, OVER_LIMIT
from hpo.trial.run import runs_of

START = datetime(2026, 1, 5, 8, 0)
DATA, NETWORK = "0123456789ab", "ba9876543210"
_HARDNESS = {"character02": 0.85, "character14": 1.05, "character22": 1.25, "character09": 1.2}


def manifest_of(config: StudyConfig) -> dict[str, str]:
    runes = config.instances.runes
    return {
        "code": "0f0f0f0f0f0f",
        "data": f"omniglot {DATA}",
        "networks": f"unet_1:{NETWORK}",
        "instances": " ".join(["bilinear", *(f"{rune}/0@unet_1" for rune in runes)]),
        "limit": "150 s less 30 s",
    }


def loss_of(recipe: Recipe, label: str, noise: random.Random) -> float:
    """Least for a learning rate of 2e-3, some rotation and many steps; some runes are harder."""
    far = math.log(recipe.lr / 2e-3)
    level = 0.085 * (1 + 0.06 * far * far + 0.003 * abs(recipe.rotation_deg - 6))
    level *= (Recipe().steps / recipe.steps) ** 0.05
    rune = label.partition("/")[0]
    return level * _HARDNESS.get(rune, 1.0) * noise.lognormvariate(0, 0.01)


def make_trials(config: StudyConfig, count: int, seed: int = 0) -> list[FrozenTrial]:
    """Finished trials of random recipes: complete, pruned, too slow, hopeless, and a few bugs."""
    rng = random.Random(seed)
    sampler = optuna.samplers.RandomSampler(seed=seed)
    labels = [f"{rune}/0" for rune in config.instances.runes]
    made, best, now = [], math.inf, START
    for number in range(count):
        if number % 50 == 0:  # a study looks at all of its trials whenever it is asked for one
            study = optuna.create_study(sampler=sampler)
        trial = study.ask()
        method = config.load_method()
        recipe = Recipe(**sample_values(trial, config.space, config.fixed, method))
        if number == 0:
            recipe = Recipe.from_dict(config.fixed)
        attrs: dict[str, Any] = {"recipe": json.dumps(recipe.to_dict()), "outcome": "complete"}
        state = TrialState.COMPLETE
        calls: list[dict[str, Any]] = []
        for label in labels:
            loss = loss_of(recipe, label, rng)
            seconds = min(140.0, recipe.steps * recipe.batch_size / 2500 + rng.uniform(5, 8))
            calls.append({"instance": label, "loss": loss, "standard_error": 0.001 * loss / 0.09,
                          "seconds": round(seconds, 3), "steps": recipe.steps})  # fmt: skip
            mean = sum(c["loss"] for c in calls) / len(calls)
            if seconds > config.feasible_s:
                state, attrs["outcome"] = TrialState.PRUNED, "infeasible"
                attrs["reason"] = f"a call took {seconds:.1f} s; 120 are allowed"
            elif len(calls) < len(labels) and mean > 1.25 * best and len(calls) > 1:
                state, attrs["outcome"] = TrialState.PRUNED, "pruned"
                attrs["reason"] = f"weak after {len(calls)} of {len(labels)} instances"
            if state != TrialState.COMPLETE:
                break
        value: float | None = mean
        system: dict[str, Any] = {}
        longest_s = max(c["seconds"] for c in calls)
        constraints = {OVER_LIMIT: longest_s - config.feasible_s}
        if number % 40 == 17:
            state, value, attrs["outcome"] = TrialState.FAIL, None, "bug"
            attrs["reason"] = "ValueError: a mistake"
        elif number % 25 == 13:
            state, attrs["outcome"], calls = TrialState.PRUNED, "hopeless", []
            constraints[FAILED] = 1e6
        elif state == TrialState.COMPLETE:
            best = min(best, mean)
        if calls:
            error = math.sqrt(sum(c["standard_error"] ** 2 for c in calls)) / len(calls)
            attrs |= {"instances": calls, "standard_error": error, "longest_call_s": longest_s}
        for name, excess in constraints.items():
            system[f"constraints:{name}"] = excess
        system["constraints"] = list(constraints.values())
        frozen = optuna.trial.create_trial(
            state=state,
            value=value,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attrs,
            system_attrs=system,
            intermediate_values={
                i: sum(c["loss"] for c in calls[:i]) / i for i in range(1, len(calls) + 1)
            },
        )
        frozen.number = frozen._trial_id = number
        frozen.datetime_start = now
        now += timedelta(seconds=sum(c["seconds"] for c in calls) + 5)
        frozen.datetime_complete = now
        made.append(frozen)
    return made


def confirmation(config: StudyConfig, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Attributes of a study, as `hpo.confirm` left them before a result had its calls."""
    study = optuna.create_study(study_name=config.name)
    study.add_trials(trials)
    candidates = choose_candidates(config, study, 4, ())
    by_digest = {c.digest: c for c in candidates}
    labels = [f"{rune}/{split} bilinear" for split in (0, 1) for rune in config.confirm.runes]
    rng = random.Random(5)
    attrs: dict[str, Any] = {}

    def measure(digest: str, label: str) -> tuple[float, float]:
        loss = loss_of(Recipe(**by_digest[digest].recipe), label, rng)
        attrs[f"{CALLS_PREFIX}{digest}:{label}"] = {
            "loss": loss, "standard_error": 0.001, "seconds": 70.0, "steps": 9, "basis": "b",
        }  # fmt: skip
        return loss, 70.0

    units = units_of({label: label.partition("/")[0] for label in labels})
    halved = halve(list(by_digest), candidates[0].digest, units, measure)
    costs = dict.fromkeys(by_digest, 1.625)
    result = result_of(
        halved, candidates, dict.fromkeys(by_digest), costs, {},
        rounds=block_ends(len(labels), 3), estimator=config.estimator.model_dump(),
        feasible_s=config.feasible_s, code="0f0f0f0f0f0f",
    )  # fmt: skip
    return {**attrs, CONFIRMED_KEY: result.to_json()}


def make_references(config: StudyConfig) -> list[Reference]:
    """Of reference A, on all instances of the search and of the confirmation."""
    labels = [f"{r}/{s}" for r in (*config.instances.runes, *config.confirm.runes) for s in (0, 1)]
    rng = random.Random(9)
    recipe = Recipe(lr=2e-4)
    return [
        Reference("A", DATA, NETWORK, label, "bilinear", loss_of(recipe, label, rng), 0.001)
        for label in labels
    ]


@pytest.fixture(scope="session")
def config() -> StudyConfig:
    return load_study_file(str(Path(__file__).parents[3] / "studies" / "runes-default.toml"))


@pytest.fixture(scope="session")
def trials(config: StudyConfig) -> list[FrozenTrial]:
    """Sixty; trial 0 is of the default recipe."""
    return make_trials(config, 60)


@pytest.fixture(scope="session")
def confirmed(config: StudyConfig, trials: list[FrozenTrial]) -> dict[str, Any]:
    return confirmation(config, trials)


@pytest.fixture(scope="session")
def references(config: StudyConfig) -> list[Reference]:
    return make_references(config)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of importances, most of a page's time, are rough here; other tests tell of them."""
    monkeypatch.setattr(importance, "_RESAMPLES", 3)


Make = Callable[..., StudyData]


@pytest.fixture
def make_data(config: StudyConfig) -> Make:
    """What the page is made of, from trials and attributes of the study."""

    def make(
        trials: Sequence[FrozenTrial], attrs: Mapping[str, Any] = {}, **more: Any
    ) -> StudyData:
        common = {MANIFEST_KEY: manifest_of(config), "about": config.about}
        return StudyData(**{
            "config": config, "study_argument": "runes", "url": "sqlite:///runes.db",
            "attrs": {**common, **attrs}, "runs": runs_of(trials), "beats": (),
            "now": datetime(2026, 1, 6, tzinfo=UTC), **more,
        })  # fmt: skip

    return make


def _store(url: str, config: StudyConfig, trials: Sequence[FrozenTrial],
           attrs: Mapping[str, Any]) -> None:  # fmt: skip
    """A database with a study of these trials."""
    storage_fill.fill(url, [t for t in trials if t.value is not None])
    storage = open_storage(url)
    with storage.engine.begin() as c:
        c.execute(sa.update(db.STUDIES).values(study_name=config.name))
        c.execute(
            sa.update(db.TRIALS)
            .where(db.TRIALS.c.number == sa.bindparam("n"))
            .values(datetime_start=sa.bindparam("s"), datetime_complete=sa.bindparam("e")),
            [{"n": t.number, "s": t.datetime_start, "e": t.datetime_complete} for t in trials],
        )
    study = load_study(storage, config.name)
    made_by = {"runes": "0.1.0", "python": "3.11.7"}
    common = {MANIFEST_KEY: manifest_of(config), MADE_BY_KEY: made_by, "about": config.about}
    for key, value in {**common, **attrs}.items():
        study.set_user_attr(key, value)
    storage.engine.dispose()


@pytest.fixture(scope="session")
def store() -> Callable[..., None]:
    return _store


@pytest.fixture(scope="session")
def many(config: StudyConfig) -> list[FrozenTrial]:
    """Two thousand: each recipe five times, with losses of its own."""
    rng, made = random.Random(3), make_trials(config, 400)
    length = (made[-1].datetime_complete or START) - START
    found = []
    for number in range(2000):
        trial = copy.copy(made[number % len(made)])
        later = number // len(made) * length
        assert trial.datetime_start and trial.datetime_complete
        trial.number = trial._trial_id = number
        trial.datetime_start += later
        trial.datetime_complete += later
        if trial.value is not None:
            trial.value *= rng.lognormvariate(0, 0.01)
        found.append(trial)
    return found


_HTML = "{http://www.w3.org/1999/xhtml}"
_SVG = "{http://www.w3.org/2000/svg}"
_OPENING = {"href", "src", "srcset", "action", "poster", "data", "background", "{xlink}href"}


class Page:
    """A page that was parsed strictly, and the checks that every page passes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.root = html5lib.HTMLParser(strict=True).parse(text)
        self.elements = list(self.root.iter())

    def all(self, tag: str) -> list[Element]:
        return [e for e in self.elements if e.tag in (_HTML + tag, _SVG + tag)]

    def words(self) -> str:
        return " ".join(" ".join(self.root.itertext()).split())

    def check(self) -> Page:
        self._check_nothing_runs_or_loads()
        self._check_accessible()
        return self

    def _check_nothing_runs_or_loads(self) -> None:
        tags = {str(e.tag).rpartition("}")[2] for e in self.elements}
        assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "audio"}
        for e in self.elements:
            for name, value in e.attrib.items():
                assert not name.startswith("on") and name != "style", (e.tag, name)
                if name in _OPENING:
                    assert value.startswith(("#", "data:image/png;base64,")), value
        (style,) = self.all("style")
        assert "url(" not in (style.text or "") and "@import" not in (style.text or "")
        digest = base64.b64encode(hashlib.sha256((style.text or "").encode()).digest()).decode()
        (policy,) = [m for m in self.all("meta") if m.get("http-equiv")]
        assert policy.get("content") == (
            f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
            "base-uri 'none'; form-action 'none'"
        )

    def _check_accessible(self) -> None:
        assert self.all("html")[0].get("lang") == "en"
        assert len(self.all("h1")) == 1
        ids = [e.get("id") for e in self.elements if e.get("id")]
        assert len(ids) == len(set(ids))
        for e in self.elements:
            for name in (e.get("aria-labelledby") or "").split():
                assert name in ids
            if (e.get("href") or "").startswith("#"):
                assert e.get("href", "")[1:] in ids
        for svg in self.all("svg"):
            assert svg.get("role") == "img"
            assert [c.tag for c in svg[:2]] == [_SVG + "title", _SVG + "desc"]
            assert all((c.text or "").strip() for c in svg[:2])
            assert svg.get("aria-labelledby") == " ".join(c.get("id", "") for c in svg[:2])
        for table in self.all("table"):
            assert table[0].tag == _HTML + "caption" and (table[0].text or "").strip()
        assert all(th.get("scope") in ("row", "col") for th in self.all("th"))
        assert all((img.get("alt") or "").strip() for img in self.all("img"))


@pytest.fixture(scope="session")
def checked() -> Callable[[str], Page]:
    """Parses a page and makes sure that it is sound."""
    return lambda text: Page(text).check()
