"""Study files: ``studies/NAME.toml`` to a validated `StudyConfig`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from finetune.data import Resize
from finetune.errors import UserError
from finetune.recipe import Recipe, RecipeError

from .space import Parameter, check_space

STUDIES_DIR = Path("studies")


class _Table(BaseModel):
    """A table of a study file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sampler(_Table):
    """Which of Optuna's samplers proposes recipes."""

    name: Literal["tpe", "gp", "random"] = "tpe"
    seed: Annotated[int, Field(ge=0)] = 0
    startup_trials: PositiveInt = 10  # drawn at random before the sampler has something to learn


class Pruner(_Table):
    """Which of Optuna's pruners ends weak trials; its steps are instances."""

    name: Literal["median", "percentile", "none"] = "percentile"
    percentile: Annotated[float, Field(gt=0, lt=100)] = 40.0  # of known trials that may go on
    startup_trials: PositiveInt = 5  # complete trials before any is pruned


class Instances(_Table):
    """What a trial is measured on: each rune of each split, in this order."""

    source: Literal["omniglot", "drawn"]
    runes: tuple[str, ...] = ()  # none: all that the source has
    splits: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    resize: Resize = "bilinear"
    pretrained: Path | None = None  # directory of networks; none: the embedded ones


class Estimator(_Table):
    """The table of times and noises that all trials share."""

    strata: PositiveInt = 25
    replicates: Annotated[int, Field(ge=2)] = 8
    seed: Annotated[int, Field(ge=0)] = 0


class Budget(_Table):
    """When a worker stops; whichever is reached first."""

    trials: PositiveInt | None = None  # in the study, by all workers
    seconds: Annotated[float, Field(gt=0)] | None = None  # of this worker's wall clock


class StudyConfig(_Table):
    """A study file, whole."""

    name: Annotated[str, Field(min_length=1)]
    about: str = ""
    storage: Annotated[str, Field(min_length=1)]  # a SQLAlchemy URL
    limit_s: Annotated[float, Field(gt=0)] = 120.0  # a recipe with a longer call is infeasible
    instances: Instances
    space: Annotated[dict[str, Parameter], Field(min_length=1)]
    fixed: dict[str, Any] = {}
    start: tuple[dict[str, Any], ...] = ()  # parameters of trials to run first
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    estimator: Estimator = Estimator()
    budget: Budget = Budget()

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        try:
            Recipe.from_dict(self.fixed)
        except RecipeError as error:
            raise ValueError(f"[fixed] {error}") from error
        check_space(self.space, self.fixed, self.start)
        return self


def find_study(study: str) -> Path:
    """The file of a study: a path, or the name of one in ``studies/``.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if study.endswith(".toml") or "/" in study:
        path = Path(study)
        if not path.is_file():
            raise UserError(f"{path}: no such study file")
        return path
    directories = [STUDIES_DIR, Path(__file__).parent.parent / STUDIES_DIR]
    for directory in directories:
        path = directory / f"{study}.toml"
        if path.is_file():
            return path
    known = sorted({p.stem for d in directories for p in d.glob("*.toml")})
    raise UserError(
        f"no study {study!r}; write one of {', '.join(known) or '(none found)'}, "
        "or the path of a study file"
    )


def load_study(study: str) -> StudyConfig:
    """Read and validate a study by its name or path.

    Raises:
        UserError: no such file, no TOML, or a key that is unknown or out of its range.
    """
    path = find_study(study)
    try:
        return StudyConfig.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        raise UserError(f"{path}: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    """The first thing to mend, in one line: the key, what is allowed, what was found."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"] if part not in _TAGS) or "study"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where}; remove it, or see docs/studies.md for those there are"
    if problem["type"] == "missing":
        return f"{where} is missing"
    if problem["type"] == "value_error":
        return message if where == "study" else f"{where}: {message}"
    return f"{where} is {problem['input']!r}: {message}"


_TAGS = ("float", "int", "choice", "switch")  # pydantic names the kind of a parameter in the path
