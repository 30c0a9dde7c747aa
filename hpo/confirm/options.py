"""Options of ``python -m hpo.confirm``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..arguments import DeviceOptions, DrawingsOptions, StudyOptions, json_option, option
from ..errors import UserError


@dataclass(frozen=True, kw_only=True)
class ConfirmOptions(DeviceOptions, DrawingsOptions, StudyOptions):
    """Which recipes are measured again, and how."""

    top: int = option("best trials that take part", 8, least=0, metavar="N")
    recipe: tuple[Path, ...] = option(
        "a recipe in JSON that takes part as well; may be repeated", (), metavar="FILE"
    )
    submission: tuple[Path, ...] = option(
        "race this file with the others that are named, and nothing else; may be repeated",
        (),
        metavar="FILE",
    )
    rounds: int = option("of halving; 1: none", 3, least=1, metavar="N")
    json: bool = json_option("docs/confirm.md")

    def __post_init__(self) -> None:
        if self.submission and self.recipe:
            raise UserError("--submission races files and --recipe is of a study; leave one out")
        if len(self.submission) == 1:
            raise UserError(
                "--submission is there once; name two files or more, or score one by "
                "python -m finetune.challenge"
            )
