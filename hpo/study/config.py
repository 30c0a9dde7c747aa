"""Study files: read ``studies/NAME.toml`` into a validated `StudyConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from ..arguments import LARGEST_NUMBER
from ..artifacts.location import check_place, default_place
from ..clock.plan import Clock
from ..clock.settings import ClockTable
from ..components import find_function
from ..errors import UserError
from ..problem.base import Method, Problem
from ..problem.registry import (
    RECIPE,
    RUNES,
    check_name,
    load_file_method,
    load_method,
    load_problem,
)
from ..problem.settings import Confirm, Estimator, Instances
from ..pruners.improvement import HOURS, SHARE
from ..pruners.registry import Pruner
from ..samplers.registry import Sampler
from ..settings import (
    Count,
    Finite,
    Natural,
    PositiveFloat,
    Table,
    TableError,
    find_file,
    first_problem,
    read_file,
)
from .space import Parameter, check_parameters, check_space

STUDIES_DIR = Path("studies")
_KEYS = "docs/studies.md"  # the page that describes all keys


class Limits(Table):
    """What else makes a recipe infeasible, beside the seconds of its calls."""

    cost: Annotated[float, Field(ge=1, le=LARGEST_NUMBER)] | None = None
    """The most that an answer of the returned network may cost: CPU time of a pass of ten
    drawings on one thread over the plain network's, the mean of a trial's calls. None: no
    limit."""


class Improvement(Table):
    """How probable it must be that the best loss still falls, for workers to go on."""

    chance: Annotated[float, Field(gt=0, lt=1)]
    """The probability below which they stop."""
    share: Annotated[float, Field(gt=0, lt=1)] = SHARE
    """Of the best loss, by which it would fall."""
    hours: PositiveFloat = HOURS
    """Of compute, in which it would."""

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, table: Any) -> Any:
        """A number alone is the probability."""
        return {"chance": table} if isinstance(table, (int, float)) else table


class Budget(Table):
    """When workers stop; whichever is reached first.  Nothing set: never."""

    trials: Count | None = None
    """Finished in the study (complete, pruned or failed), by all workers together; met exactly."""
    seconds: PositiveFloat | None = None
    """Of one worker's wall clock, after which it starts no trial."""
    compute_seconds: PositiveFloat | None = None
    """Of all finished trials together."""
    target: Finite | None = None
    """A feasible trial has a loss this low."""
    stagnation: Count | None = None
    """Trials finished since the best one."""
    improvement: Improvement | None = None
    """The probability that the best loss still falls is lower than this: a table of its own, or
    the probability alone, such as 0.1. `hpo.status` says how probable it is."""

    @property
    def parts(self) -> dict[str, float]:
        """The parts that are set, by name, each as one number."""
        parts = self.model_dump(exclude_none=True)
        if self.improvement is not None:
            parts["improvement"] = self.improvement.chance
        return parts


def _function_name(name: str) -> str:
    find_function(name)
    return name


class Callbacks(Table):
    """Functions of your own that workers call; the modules lie where the worker is started."""

    after_trial: Annotated[str, AfterValidator(_function_name)] | None = None
    """`MODULE:FUNCTION`, called with a `hpo.worker.callbacks.TrialEnded` when a trial has ended.
    One that fails is a line in the log, and never a lost trial."""


class Recovery(Table):
    """How lost workers are noticed and failures are borne."""

    heartbeat_s: PositiveFloat = 15.0
    """Between a running trial's heartbeats."""
    grace_s: PositiveFloat = 90.0
    """Of silence, after which its worker may be called lost; at least three heartbeats."""
    retries: Natural = 2
    """Of a trial whose worker was lost at the same call, before it counts as failed."""
    failures: Count = 3
    """Bugs or lacks of memory in a row that end a worker."""
    patience_s: PositiveFloat = 3600.0
    """With a database that is away."""

    @model_validator(mode="after")
    def _spaced(self) -> Recovery:
        if self.grace_s < 3 * self.heartbeat_s:
            raise ValueError(
                f"grace_s is {self.grace_s:g} and heartbeat_s {self.heartbeat_s:g}; "
                "write a grace of at least three heartbeats"
            )
        return self


def _method_name(name: str) -> str:
    check_name(name, RECIPE)
    return name


def _problem_name(name: str) -> str:
    check_name(name, RUNES)
    return name


class MethodTable(Table):
    """What is tuned."""

    name: Annotated[str, AfterValidator(_method_name)] = RECIPE
    """Our recipe, or `MODULE:CLASS` of your own with the methods of `hpo.problem.base.Method`."""
    file: Path | None = None
    """A Python file of your own with `finetune_model`, from where you start the command, else
    one of the examples of this package."""
    parameters: Literal["keywords", "dataclass", "constants"] | None = None
    """Which of the file's values are parameters. None: the first of these kinds that it has."""
    steps: Annotated[str, Field(min_length=1)] | None = None
    """The file's parameter that counts the steps of a call. With `[instances] speeds` a call at a
    speed of 0.1 makes a tenth of them."""
    memory_gb: PositiveFloat | None = None
    """That a call of the file may use, in GiB. None: the worker's share of three quarters
    of the machine's."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> MethodTable:
        if self.file is None:
            for key in ("parameters", "steps", "memory_gb"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} is of a file; write file as well, or leave it out")
        elif self.name != RECIPE:
            raise ValueError("name and file are both there; leave one of them out")
        return self

    def load(self) -> Method:
        """Load the method."""
        if self.file is None:
            return load_method(self.name)
        shipped = Path(__file__).parents[1] / self.file
        file = shipped if shipped.is_file() and not self.file.exists() else self.file
        return load_file_method(file, self.parameters, self.steps, self.memory_gb)


class ProblemTable(Table):
    """What it is measured on."""

    name: Annotated[str, AfterValidator(_problem_name)] = RUNES
    """Runes, or `MODULE:CLASS` of your own with the methods of `hpo.problem.base.Problem`."""


class StartFrom(Table):
    """Another study whose best recipes are tried first, as far as they are in this space."""

    study: Annotated[str, Field(min_length=1)]
    """Its name."""
    best: Count = 5
    """How many of its recipes."""
    trials: Literal["all"] | None = None
    """Instead of trying recipes: the trials inside this space become this study's, with
    their calls."""
    storage: str | None = None
    """Its database. None: where this study is."""


def _place(artifacts: str) -> str:
    check_place(artifacts)
    return artifacts


class StudyConfig(Table):
    """A study file, whole."""

    name: Annotated[str, Field(min_length=1, max_length=512)]
    """Of the study in its database."""
    about: str = ""
    """A sentence for people."""
    storage: Annotated[str, Field(min_length=1)]
    """`sqlite:///FILE.db`, from where you start the worker, or `postgresql://USER:PASSWORD@HOST/DATABASE`."""
    artifacts: Annotated[str, AfterValidator(_place)] | None = None
    """Where pictures of trials are kept: a directory, `s3://BUCKET`,
    `s3://BUCKET?endpoint=https://HOST`, or `none`. None: beside the database."""
    limit_s: PositiveFloat = 150.0
    """A call that takes this many seconds is stopped."""
    margin_s: Annotated[float, Field(ge=0, le=LARGEST_NUMBER)] = 30.0
    """A recipe with a call longer than `limit_s - margin_s` is infeasible, and never called
    best."""
    limits: Limits = Limits()
    clock: ClockTable = ClockTable()
    method: MethodTable = MethodTable()
    problem: ProblemTable = ProblemTable()
    instances: Instances
    space: Annotated[dict[str, Parameter], Field(min_length=1)]
    """What is sampled: a table for each field of the method, and for switches."""
    fixed: dict[str, Any] = Field(default_factory=dict)
    """Fields of the method that do not vary."""
    start: tuple[dict[str, Any], ...] = ()
    """Parameters of trials to run first, a table `[[start]]` each."""
    start_from: StartFrom | None = None
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    estimator: Estimator = Estimator()
    budget: Budget = Budget()
    recovery: Recovery = Recovery()
    confirm: Confirm = Confirm()
    callbacks: Callbacks = Callbacks()

    def on_drawings(
        self, alphabet: str | None, drawings: Path | None, train: int | None
    ) -> StudyConfig:
        """The study on the drawings that a command line names; None: those of the file.

        Raises:
            UserError: the options contradict each other.
        """
        if alphabet is not None and drawings is not None:
            raise UserError("--alphabet and --drawings name different drawings; leave one out")
        # The command line replaces everything in the file that names drawings.
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
            raise UserError(f"--{first_problem(error, _KEYS)}") from error

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
        if self.clock.is_wall and self.instances.speeds and self.method.steps is None:
            raise ValueError(
                "instances.speeds are of a reference machine, and clock.machine is wall; "
                "name the profile of a machine, or in [method] the steps of a file"
            )
        if self.method.file is not None and not self.clock.is_wall:
            raise ValueError(
                f"clock.machine is {self.clock.machine!r}, and calls of {self.method.file}, which "
                'may read the time, end by wall clock; write "wall", or leave [clock] out'
            )
        check_space(self.space, self.fixed, self.start, self.load_method())
        check_parameters("sampler.prior", self.sampler.prior, self.space)
        return self

    def load_clock(self) -> Clock | None:
        """Load the reference clock; None: calls run by wall clock.

        Raises:
            UserError: the profile is not there or can't be used.
        """
        return self.clock.load(self.method.name)

    def load_method(self) -> Method:
        """Load the method, which is tuned."""
        return self.method.load()

    def load_problem(self, data: Path | None) -> Problem:
        """Load the problem, which the method is measured on.

        Args:
            data: directory of the data; None: the default places.
        """
        tables = (self.instances, self.estimator, self.confirm)
        return load_problem(self.problem.name, *tables, data)

    def storage_url(self, option: str | None = None) -> str:
        """URL of the study's database: the command's ``option``, else the file's."""
        return option or self.storage

    def artifacts_place(self, storage: str | None = None, option: str | None = None) -> str:
        """Place of trials' files: the ``option``, else the study file's, else beside ``storage``.

        Raises:
            UserError: ``storage`` is not a database URL.
        """
        named = option or self.artifacts
        return named or default_place(self.name, self.storage_url(storage))


def find_study(study: str) -> Path:
    """Find a study file by its path, or by its name in ``studies/``.

    Raises:
        UserError: there is no such file; the message lists the ones that exist.
    """
    return find_file(study, STUDIES_DIR, "study", "a study file")


def load_study_file(study: str) -> StudyConfig:
    """Read and validate a study by its name or path.

    Raises:
        UserError: the file does not exist or is not TOML, or a key is unknown or out of its range.
    """
    path = find_study(study)
    try:
        return read_file(path, StudyConfig, _KEYS)
    except TableError as error:
        raise UserError(f"{path}: {error}") from error
