"""The table of a study file that names its pruner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import optuna
from pydantic import Field, model_validator

from ..components import check_component, make_component
from ..errors import UserError
from ..settings import Count, Table


class Pruner(Table):
    """Settings of the pruner; its steps count instances."""

    name: str = "racing"
    """`racing`, `median`, `percentile`, `none`, or a class such as
    `optuna.pruners:WilcoxonPruner`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of a class."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.4
    """Of `racing`: the probability, at most, of dropping a recipe that is as good as the best."""
    percentile: Annotated[float, Field(gt=0, lt=100)] = 40.0
    """Of `percentile`: the share of the known trials that may go on."""
    startup_trials: Count = 5
    """Of `percentile` and `median`: complete trials before any is pruned."""

    @model_validator(mode="after")
    def _known(self) -> Pruner:
        check_component(self.name, self.options, PRUNERS, optuna.pruners.BasePruner)
        return self


def make_pruner(table: Pruner) -> optuna.pruners.BasePruner:
    """Make the pruner that the study asks for; its steps count instances.

    Raises:
        UserError: its class can't be imported here.
    """
    if table.name not in PRUNERS:
        try:
            made: optuna.pruners.BasePruner = make_component(
                table.name, table.options, optuna.pruners.BasePruner
            )
        except ValueError as error:
            raise UserError(f"pruner: {error}") from error
        return made
    return PRUNERS[table.name](table)


def _percentile(table: Pruner, percentile: float) -> optuna.pruners.BasePruner:
    return optuna.pruners.PercentilePruner(
        percentile, n_startup_trials=table.startup_trials, n_warmup_steps=0
    )


def _racing(table: Pruner) -> optuna.pruners.BasePruner:
    # Imported late: SciPy is slow to import, and reading a study file does not need it.
    from .racing import RacingPruner

    return RacingPruner(table.alpha)


PRUNERS: Mapping[str, Callable[[Pruner], optuna.pruners.BasePruner]] = {
    "racing": _racing,
    "median": lambda table: _percentile(table, 50.0),
    "percentile": lambda table: _percentile(table, table.percentile),
    "none": lambda table: optuna.pruners.NopPruner(),
}
