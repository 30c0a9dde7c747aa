"""Queue a trial of a living study, which its next free worker runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import StudyOptions, option, parse
from .errors import UserError, printable, run_command

if TYPE_CHECKING:
    from .study.config import StudyConfig


@dataclass(frozen=True, kw_only=True)
class EnqueueOptions(StudyOptions):
    """Which study, and what the trial's parameters are."""

    recipe: Path | None = option(
        "a whole recipe in JSON, as hpo.export --format json writes it", None, metavar="FILE"
    )
    parameters: tuple[str, ...] = option(
        "parameters of the space, such as lr=3e-3; those that are left out are sampled",
        (),
        flag="parameters",
        metavar="NAME=VALUE",
    )


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(EnqueueOptions, argv, "enqueue", __doc__)
    if (options.recipe is None) == (not options.parameters):
        raise UserError("write lr=3e-3 steps=800, say, or --recipe FILE, and not both")
    from .study.control import enqueue
    from .study.living import opened

    with opened(options) as living:
        if options.recipe is None:
            parameters = parameters_from(options.parameters, living.config)
        else:
            parameters = _of_recipe(options.recipe, living.config)
        control = enqueue(living.storage, living.id, parameters)
    print(printable(str(control)))
    return 0


def parameters_from(texts: Sequence[str], config: StudyConfig) -> dict[str, Any]:
    """What ``name=value`` says, if the space can sample it.

    Raises:
        UserError: it can't; the message says what it can.
    """
    from .study.space import check_queued, read_parameter

    parameters: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{text!r} is no parameter; write NAME=VALUE")
        parameters[name] = read_parameter(value, name, config.space)
    try:
        check_queued(parameters, config.space)
    except ValueError as error:
        raise UserError(str(error)) from error
    return parameters


def _of_recipe(path: Path, config: StudyConfig) -> dict[str, Any]:
    from .export.selection import read_recipe
    from .study.takeover import parameters_for

    method = config.load_method()
    recipe = read_recipe(path, method).recipe
    found = parameters_for(recipe, {}, config.space, config.fixed, method)
    if found is None:
        raise UserError(
            f"{path}: the recipe is not in the study's space; queue parameters that are, or "
            "widen the space in a new study"
        )
    return found


if __name__ == "__main__":
    run_command(main)
