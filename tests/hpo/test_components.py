"""Samplers and pruners by the names of their classes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import optuna
import pytest

from hpo.errors import UserError
from hpo.pruners.registry import Pruner, make_pruner
from hpo.samplers.registry import Sampler, make_sampler
from hpo.storage.open import load_study, open_storage
from hpo.study.config import load_study_file
from hpo.worker.options import WorkerOptions
from hpo.worker.run import run_worker

ROOT = Path(__file__).parents[2]


def study_file(path: Path, text: str) -> str:
    """The cheap study with these tables as well."""
    cheap = (ROOT / "tests" / "cheap.toml").read_text()
    path.write_text(cheap.replace("[estimator]", f"{text}\n[estimator]"))
    return str(path)


@pytest.mark.parametrize(("upper", "outcome"), [(1000.0, "complete"), (1.0, "pruned")])
def test_a_study_runs_with_any_sampler_and_pruner(
    tmp_path: Path, upper: float, outcome: str
) -> None:
    text = (
        '[sampler]\nname = "optuna.samplers:CmaEsSampler"\n'
        "options = { n_startup_trials = 2, popsize = 4 }\n"
        f'[pruner]\nname = "optuna.pruners:ThresholdPruner"\noptions = {{ upper = {upper} }}\n'
    )
    # CMA-ES needs two parameters.
    space = '[space.steps]\ntype = "int"\nlow = 1\nhigh = 9\n'
    study = study_file(tmp_path / "s.toml", text + space)
    url = f"sqlite:///{tmp_path}/s.db"
    options = WorkerOptions(study=study, storage=url, trials=8, artifacts="none")
    assert run_worker(options) == 0
    trials = load_study(open_storage(url), "cheap").get_trials()
    # Each loss is over 1 and far below 1000.
    assert [t.user_attrs["outcome"] for t in trials] == 8 * [outcome]
    keys = {key for t in trials for key in t.system_attrs}
    # The sampler's own record; it learns of complete trials alone.
    assert any(key.startswith("cma:") for key in keys) == (outcome == "complete")


def test_each_worker_has_its_own_seed() -> None:
    table = Sampler(name="optuna.samplers:RandomSampler")
    drawn = [
        optuna.create_study(sampler=make_sampler(table, seed)).ask().suggest_float("x", 0, 1)
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    fixed = Sampler(name="optuna.samplers:RandomSampler", options={"seed": 7})
    same = [
        optuna.create_study(sampler=make_sampler(fixed, seed)).ask().suggest_float("x", 0, 1)
        for seed in (1, 2)
    ]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[sampler]\nname = "cma"', "sampler: name is 'cma'; write one of tpe, gp, random, or a c"),
        (
            '[sampler]\nname = "tpe"\noptions = { a = 1 }',
            "options are for a class of your choice a",
        ),
        ('[sampler]\nname = "optuna.samplers:None"', "and optuna.samplers has no None"),
        ('[sampler]\nname = "nowhere:Sampler"', "nowhere:Sampler can't be imported: No module nam"),
        ('[sampler]\nname = "optuna.pruners:NopPruner"', "which is no BaseSampler of Optuna"),
        (
            '[sampler]\nname = "optuna.samplers:RandomSampler"\noptions = { sead = 1 }',
            "options names 'sead'; optuna.samplers:RandomSampler takes seed",
        ),
        (
            '[pruner]\nname = "optuna.pruners:PercentilePruner"\noptions = { percentile = 200 }',
            "pruner: optuna.pruners:PercentilePruner can't be made: Percentile must be ",
        ),
        (
            '[pruner]\nname = "optuna.pruners:PercentilePruner"',
            "PercentilePruner can't be made: ",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_study_file(study_file(tmp_path / "s.toml", text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_classes_of_optunahub_are_loaded_when_they_are_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = Pruner(name="optunahub:pruners/never:NeverPruner", options={"patience": 3})
    monkeypatch.setitem(sys.modules, "optunahub", None)
    with pytest.raises(UserError, match=r"^pruner: optunahub:pruners/never:NeverPruner can't be"):
        make_pruner(table)

    class NeverPruner(optuna.pruners.NopPruner):
        def __init__(self, patience: int) -> None:
            self.patience = patience

    hub: Any = ModuleType("optunahub")
    loaded = []

    def load_module(package: str) -> SimpleNamespace:
        loaded.append(package)
        return SimpleNamespace(NeverPruner=NeverPruner)

    hub.load_module = load_module
    monkeypatch.setitem(sys.modules, "optunahub", hub)
    pruner = make_pruner(table)
    assert isinstance(pruner, NeverPruner)
    assert (pruner.patience, loaded) == (3, ["pruners/never"])
