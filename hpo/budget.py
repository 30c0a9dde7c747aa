"""Set the budget of a living study, for all its workers; what is not given stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from .arguments import StudyOptions, option, parse
from .errors import UserError, printable, run_command

if TYPE_CHECKING:
    from .study.config import Budget


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(StudyOptions):
    """Parts of the budget: a number, +NUMBER for so much more, or none for no limit."""

    trials: str | None = option("finished in the study", None, metavar="N")
    compute_seconds: str | None = option("of all finished trials together", None, metavar="S")
    seconds: str | None = option("of one worker's wall clock", None, metavar="S")
    target: str | None = option("a loss that is low enough", None, metavar="LOSS")
    stagnation: str | None = option("trials since the best one", None, metavar="N")
    improvement: str | None = option(
        "how probable it must be that the best loss still falls", None, metavar="P"
    )


def main(argv: Sequence[str] | None = None) -> int:
    epilog = "What is set here beats the study file and the options of workers."
    options = parse(BudgetOptions, argv, "budget", __doc__, epilog)
    asked = {
        f.name: text
        for f in fields(options)
        if f.name not in ("study", "storage") and (text := getattr(options, f.name)) is not None
    }
    if not asked:
        raise UserError("no part of the budget is given; write --trials +100, say")
    from .study.control import ask, budget_text, read_wishes
    from .study.living import opened

    with opened(options) as living:
        before = read_wishes(living.storage, living.id).apply(living.config.budget)
        parts = _parts(asked, before)
        control = ask(living.storage, living.id, "budget", budget=parts)
    old = budget_text({name: before.parts.get(name) for name in parts})
    print(printable(f"{control}; it was {old}"))
    return 0


def _parts(asked: dict[str, str], before: Budget) -> dict[str, Any]:
    """The budget's parts as a study file has them.

    Raises:
        UserError: one of them is no number, or adds to a part that has no limit.
    """
    from pydantic import ValidationError

    parts: dict[str, Any] = {}
    for name, text in asked.items():
        flag = "--" + name.replace("_", "-")
        if text == "none":
            parts[name] = None
            continue
        try:
            number = float(text)
        except ValueError:
            raise UserError(f"{flag} is {text!r}; write a number, +NUMBER or none") from None
        if text.startswith("+"):
            known = before.parts.get(name)
            if known is None:
                raise UserError(f"{flag} is {text} and there is no limit yet; write a number")
            number += known
        parts[name] = int(number) if number == int(number) else number
        try:
            type(before).model_validate({name: parts[name]})
        except ValidationError as error:
            words = error.errors()[0]["msg"].removeprefix("Input should be ")
            raise UserError(f"{flag} is {text}; write {words}") from None
    return parts


if __name__ == "__main__":
    run_command(main)
