"""Study files: ``studies/NAME.toml`` to a validated `StudyConfig`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from finetune.canvas import Resize
from finetune.data.futhorc import ALPHABET
from finetune.recipe import Recipe, RecipeError

from ..artifacts.location import check_place, default_place
from ..errors import UserError
from .space import Parameter, check_space

STUDIES_DIR = Path("studies")

_AUTHORS_TRAIN = 10  # drawings of a rune, of twenty

Natural = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class _Table(BaseModel):
    """A table of a study file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sampler(_Table):
    """Which of Optuna's samplers proposes recipes."""

    name: Literal["tpe", "gp", "random"] = "tpe"
    seed: Natural = 0
    startup_trials: PositiveInt = 10  # drawn at random before the sampler has something to learn
    # Finished trials that inform TPE and GP; of more, the best and a random sample of the others.
    history: Annotated[int, Field(ge=50)] = 300


class Pruner(_Table):
    """What ends weak trials; its steps are instances."""

    name: Literal["racing", "median", "percentile", "none"] = "racing"
    # Racing: probability, at most, of dropping a recipe that is as good as the best.
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.4
    # Percentile and median, of Optuna:
    percentile: Annotated[float, Field(gt=0, lt=100)] = 40.0  # of known trials that may go on
    startup_trials: PositiveInt = 5  # complete trials before any is pruned


class Limits(_Table):
    """What else makes a recipe infeasible, beside the seconds of its calls."""

    # CPU time of an answer of the returned network, over the plain network's.  None: no limit.
    cost: Annotated[float, Field(ge=1)] | None = None


class Instances(_Table):
    """What a trial is measured on: each rune of each split with each seed, in this order."""

    source: Literal["omniglot", "drawn", "drawings"]
    alphabet: Annotated[str, Field(min_length=1)] | None = None  # of Omniglot; none: the Futhorc
    drawings: Path | None = None  # folder of a person's own, from where the command is started
    train: PositiveInt | None = None  # drawings of each rune that a call learns from; none: half
    runes: tuple[str, ...] = ()  # none: all that the source has
    splits: Annotated[tuple[Natural, ...], Field(min_length=1)] = (0,)
    seeds: Annotated[tuple[Natural, ...], Field(min_length=1)] = (0,)  # of the call's randomness
    resize: Resize = "bilinear"
    pretrained: Path | None = None  # directory of networks; none: the embedded ones
    networks: tuple[str, ...] = ()  # names in that directory; none: all

    @model_validator(mode="before")
    @classmethod
    def _from_folder(cls, table: Any) -> Any:
        """Who names a folder need not say that it is the source."""
        if isinstance(table, dict) and "drawings" in table:
            return {"source": "drawings", **table}
        return table

    @model_validator(mode="after")
    def _of_one_source(self) -> Instances:
        if self.alphabet is not None and self.source != "omniglot":
            raise ValueError(
                f'alphabet is of Omniglot and source is "{self.source}"; leave one of them out'
            )
        if self.drawings is not None and self.source != "drawings":
            raise ValueError(
                f'drawings names a folder and source is "{self.source}"; leave one of them out'
            )
        if self.drawings is None and self.source == "drawings":
            raise ValueError("drawings is missing; name the folder of your drawings")
        return self

    @property
    def has_points(self) -> bool:
        """Whether the author's thresholds are for these: ten drawings of Omniglot's Futhorc."""
        return (
            self.source == "omniglot"
            and self.alphabet in (None, ALPHABET)
            and self.train in (None, _AUTHORS_TRAIN)
        )


class Confirm(_Table):
    """Where the best few recipes meet at the end: instances that no trial was measured on."""

    runes: tuple[str, ...] = ()  # none: those of the source that are not the study's
    # None: the study's own with other runes; with its own runes, numbers that it did not use.
    splits: tuple[Natural, ...] = ()
    seeds: tuple[Natural, ...] = ()
    networks: tuple[str, ...] = ()  # none: the study's
    resizes: tuple[Resize, ...] = ()  # none: the study's

    @model_validator(mode="after")
    def _distinct(self) -> Confirm:
        for key in type(self).model_fields:
            values = getattr(self, key)
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"{key} names {value!r} twice; write each once")
        return self


class Estimator(_Table):
    """The table of times and noises that all trials share."""

    strata: PositiveInt = 25
    replicates: Annotated[int, Field(ge=2)] = 8
    seed: Natural = 0


class Budget(_Table):
    """When workers stop; whichever is reached first.  Nothing set: never."""

    trials: PositiveInt | None = None  # finished in the study, by all workers; met exactly
    seconds: PositiveFloat | None = None  # of one worker's wall clock
    compute_seconds: PositiveFloat | None = None  # of all workers' trials together
    target: float | None = None  # a feasible trial has a loss this low
    stagnation: PositiveInt | None = None  # finished trials since the best


class Recovery(_Table):
    """How lost workers are noticed and failures are borne."""

    heartbeat_s: PositiveFloat = 15.0  # between a running trial's signs of life
    grace_s: PositiveFloat = 90.0  # of silence, after which its worker may be called lost
    retries: Natural = 2  # of a trial whose worker was lost, before it counts as failed
    failures: PositiveInt = 3  # bugs or lacks of memory in a row that end a worker
    patience_s: PositiveFloat = 3600.0  # with a database that is away

    @model_validator(mode="after")
    def _spaced(self) -> Recovery:
        if self.grace_s < 3 * self.heartbeat_s:
            raise ValueError(
                f"grace_s is {self.grace_s:g} and heartbeat_s {self.heartbeat_s:g}; "
                "write a grace of at least three heartbeats"
            )
        return self


class StartFrom(_Table):
    """A finished study whose best recipes are tried first, as far as they are in this space."""

    study: Annotated[str, Field(min_length=1)]
    best: PositiveInt = 5
    storage: str | None = None  # none: where this study is


def _place(artifacts: str) -> str:
    check_place(artifacts)
    return artifacts


class StudyConfig(_Table):
    """A study file, whole."""

    name: Annotated[str, Field(min_length=1, max_length=512)]
    about: str = ""
    storage: Annotated[str, Field(min_length=1)]  # a SQLAlchemy URL
    # Of pictures: a directory, s3://BUCKET or "none".  No part of the manifest.
    artifacts: Annotated[str, AfterValidator(_place)] | None = None  # none: beside the database
    limit_s: PositiveFloat = 150.0  # a call that takes this long is stopped
    margin_s: Annotated[float, Field(ge=0)] = 30.0  # a call this near it is infeasible
    limits: Limits = Limits()
    instances: Instances
    space: Annotated[dict[str, Parameter], Field(min_length=1)]
    fixed: dict[str, Any] = {}
    start: tuple[dict[str, Any], ...] = ()  # parameters of trials to run first
    start_from: StartFrom | None = None
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    estimator: Estimator = Estimator()
    budget: Budget = Budget()
    recovery: Recovery = Recovery()
    confirm: Confirm = Confirm()  # no part of the manifest: it may change after the search

    def on_drawings(
        self, alphabet: str | None, drawings: Path | None, train: int | None
    ) -> StudyConfig:
        """The study on the drawings that a command line names; None: those of the file.

        Raises:
            UserError: they don't go together.
        """
        if alphabet is not None and drawings is not None:
            raise UserError("--alphabet and --drawings name different drawings; leave one out")
        # Of what the file says, the command line replaces all that names drawings.
        asked = self.instances.model_dump(exclude_none=True)
        if alphabet is not None or drawings is not None:
            asked.pop("drawings", None)
            asked.pop("alphabet", None)
        if alphabet is not None:
            asked |= {"source": "omniglot", "alphabet": alphabet}
        if drawings is not None:
            asked |= {"source": "drawings", "drawings": drawings}
        if train is not None:
            asked["train"] = train
        try:
            return self.model_copy(update={"instances": Instances.model_validate(asked)})
        except ValidationError as error:
            raise UserError(f"--{_first_problem(error)}") from error

    @property
    def feasible_s(self) -> float:
        """Seconds within which a call must return."""
        return self.limit_s - self.margin_s

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        if self.margin_s >= self.limit_s:
            raise ValueError(
                f"margin_s is {self.margin_s:g} and limit_s {self.limit_s:g}; write a smaller one"
            )
        if "seed" in self.fixed or "seed" in self.space:
            raise ValueError("seed is no choice of a recipe's; write instances.seeds")
        try:
            Recipe.from_dict(self.fixed)
        except RecipeError as error:
            raise ValueError(f"[fixed] {error}") from error
        check_space(self.space, self.fixed, self.start)
        return self

    def storage_url(self, option: str | None = None) -> str:
        """Where the study is: ``option``, which a command was given, else the file's."""
        return option or self.storage

    def artifacts_place(self, storage: str | None = None, option: str | None = None) -> str:
        """Where files of trials are kept: ``option``, else the file's, else beside ``storage``.

        Raises:
            UserError: the database's URL is none.
        """
        named = option or self.artifacts
        return named or default_place(self.name, self.storage_url(storage))


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
    directories = [STUDIES_DIR, Path(__file__).parents[2] / STUDIES_DIR]
    for directory in directories:
        path = directory / f"{study}.toml"
        if path.is_file():
            return path
    known = sorted({p.stem for d in directories for p in d.glob("*.toml")})
    raise UserError(
        f"no study {study!r}; write one of {', '.join(known) or '(none found)'}, "
        "or the path of a study file"
    )


def load_study_file(study: str) -> StudyConfig:
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
