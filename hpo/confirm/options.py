"""Options of ``python -m hpo.confirm``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..arguments import DeviceOptions, DrawingsOptions, StudyOptions, json_option, option
from ..errors import UserError


@dataclass(frozen=True, kw_only=True)
class ConfirmOptions(DeviceOptions, DrawingsOptions, StudyOptions):
    """Options: which recipes are measured again, and how."""

    top: int = option("best trials that take part", 8, least=0, metavar="N")
    recipe: tuple[Path, ...] = option(
        "a recipe in JSON that takes part as well; may be repeated", (), metavar="FILE"
    )
    wall: bool = option(
        "end calls by wall clock, as the file that is handed in does, though the study has a "
        "reference machine; says how far its plan was off",
        False,
    )
    speeds: tuple[float, ...] = option(
        "measure the winner also at these speeds of the reference machine, such as 0.5 1 2; each "
        "takes as many calls as there are instances",
        (),
        least=0.001,
        nargs="+",
        action="extend",
        metavar="SPEED",
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
