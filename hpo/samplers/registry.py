"""The table of a study file that names its sampler."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import optuna
from pydantic import Field, model_validator

from ..arguments import LARGEST_COUNT
from ..components import check_component, make_component
from ..errors import UserError
from ..settings import Count, Seed, Table
from .bounded import BoundedSampler


class Sampler(Table):
    """Settings of the sampler, which proposes values."""

    name: str = "tpe"
    """`tpe`, `gp`, `random`, or a class such as `optuna.samplers:CmaEsSampler`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of a class."""
    seed: Seed = 0
    """Each worker's is derived from it and from the worker's place among those that joined."""
    startup_trials: Count = 10
    """Drawn at random before the sampler has something to learn."""
    history: Annotated[int, Field(ge=50, le=LARGEST_COUNT)] = 300
    """Finished trials that TPE and GP look at; of more, the best quarter and a random
    sample of the others."""
    prior: dict[str, Any] = Field(default_factory=dict)
    """Values that you take to be likely, by parameters, such as `{ lr = 1e-3 }`. Half of the first
    trials are drawn near them, and fewer and fewer later."""

    @model_validator(mode="after")
    def _known(self) -> Sampler:
        check_component(self.name, self.options, SAMPLERS, optuna.samplers.BaseSampler)
        return self


def make_sampler(table: Sampler, seed: int) -> optuna.samplers.BaseSampler:
    """Make the sampler that the study asks for, with this worker's own seed.

    Raises:
        UserError: its class can't be imported here.
    """
    made = _make_sampler(table, seed)
    if not table.prior:
        return made
    from .prior import PriorSampler

    return PriorSampler(made, table.prior, table.startup_trials, seed)


def _make_sampler(table: Sampler, seed: int) -> optuna.samplers.BaseSampler:
    if table.name not in SAMPLERS:
        try:
            made: optuna.samplers.BaseSampler = make_component(
                table.name, table.options, optuna.samplers.BaseSampler, seed
            )
        except ValueError as error:
            raise UserError(f"sampler: {error}") from error
        return made
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[table.name](table, seed)


def _tpe(table: Sampler, seed: int) -> optuna.samplers.BaseSampler:
    # Multivariate for interactions; grouped because conditional parameters may be absent.
    sampler = optuna.samplers.TPESampler(
        n_startup_trials=table.startup_trials, multivariate=True, group=True, seed=seed
    )
    return BoundedSampler(sampler, table.history, seed)


def _gp(table: Sampler, seed: int) -> optuna.samplers.BaseSampler:
    sampler = optuna.samplers.GPSampler(n_startup_trials=table.startup_trials, seed=seed)
    return BoundedSampler(sampler, table.history, seed)


def _random(table: Sampler, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


SAMPLERS: Mapping[str, Callable[[Sampler, int], optuna.samplers.BaseSampler]] = {
    "tpe": _tpe,
    "gp": _gp,
    "random": _random,
}
