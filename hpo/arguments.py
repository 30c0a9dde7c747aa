"""What a worker is told: the command line beats the environment, which beats the study file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .errors import UserError
from .problem.options import add_drawings_options

PREFIX = "RUNES_"
SAMPLERS = ("tpe", "gp", "random")  # Optuna's, by the names that a study file gives them


@dataclass(frozen=True)
class Options:
    """Options of ``python -m hpo.worker``; None: not given."""

    study: str
    storage: str | None = None
    artifacts: str | None = None
    data: Path | None = None
    alphabet: str | None = None
    drawings: Path | None = None
    train: int | None = None
    trials: int | None = None
    seconds: float | None = None
    workers: int = 1
    device: str | None = None
    threads: int | None = None
    together: int = 1
    sampler: str | None = None
    seed: int | None = None
    dry_run: bool = False
    under_fleet: bool = False


_HELP: dict[str, tuple[Callable[[str], Any], str]] = {
    "study": (str, "name in studies/, or path of a study file"),
    "storage": (str, "database URL (default: the study file's)"),
    "artifacts": (str, "pictures of trials: a directory, s3://BUCKET or none (the study file's)"),
    "trials": (int, "stop when the study has this many finished"),
    "seconds": (float, "start no trial after this many seconds"),
    "workers": (int, "processes on this machine (default: 1)"),
    "device": (str, "cpu, cuda or cuda:N (default: a GPU if there is one)"),
    "threads": (int, "CPU threads of each worker (default: the cores, shared out)"),
    "together": (int, "instances measured side by side; pays on a GPU (default: 1)"),
    "sampler": (str, "tpe, gp or random (default: the study file's)"),
    "seed": (int, "of this worker's sampler (default: from the study's seed and its place)"),
}


def parse_options(argv: Sequence[str] | None, description: str | None) -> Options:
    """The options of a command line, completed from the environment.

    Raises:
        UserError: a value is out of its range; names the option or the variable.
    """
    parser = argparse.ArgumentParser(prog="python -m hpo.worker", description=description)
    add_drawings_options(parser, "the study file's")
    for name, (convert, text) in _HELP.items():
        parser.add_argument(f"--{name}", type=convert, help=f"{text}; also ${PREFIX}{name.upper()}")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the study and a sampled recipe, create nothing"
    )
    # Set for the workers that --workers starts.
    parser.add_argument("--under-fleet", action="store_true", help=argparse.SUPPRESS)
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    words = {f.name: f"--{f.name}" for f in fields(Options)}
    for name, (convert, _) in _HELP.items():
        variable = PREFIX + name.upper()
        value = os.environ.get(variable)
        if name in given or not value:
            continue
        words[name] = variable
        try:
            given[name] = convert(value)
        except ValueError as error:
            raise UserError(f"{variable} is {value!r}; write a number") from error
    if "study" not in given:
        parser.error(f"--study is missing; write a name in studies/, or a path ({PREFIX}STUDY)")
    for name in ("trials", "seconds", "workers", "threads", "together"):
        value = given.get(name)
        if value is not None and not value > 0:
            raise UserError(f"{words[name]} is {value:g}; write more than 0")
    if given.get("sampler", SAMPLERS[0]) not in SAMPLERS:
        known = ", ".join(SAMPLERS)
        raise UserError(f"{words['sampler']} is {given['sampler']!r}; write one of {known}")
    if given.get("seed", 0) < 0:
        raise UserError(f"{words['seed']} is {given['seed']}; write 0 or more")
    return Options(**given)
