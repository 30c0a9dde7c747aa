"""Copy studies to another database, exactly, and prove it; the source stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..arguments import option, parse
from ..errors import UserError, run_command

# Imported late: Optuna takes half a second to import, and `--help` does not need it.


_URL = "a URL like sqlite:///runes.db or postgresql://USER:PASSWORD@HOST/DATABASE"


@dataclass(frozen=True, kw_only=True)
class MoveOptions:
    """Options: which studies are copied, from where to where."""

    study: tuple[str, ...] | None = option(
        "its name in the source or in studies/, or path of a study file; may be repeated",
        None,
        excludes="studies",
        variable=True,
    )
    all: bool = option("every study of the source", False, excludes="studies")
    source: str = option(f"{_URL}: it has the studies", flag="--from", variable=True, metavar="URL")
    to: str = option(f"{_URL}: it gets them", variable=True, metavar="URL")
    while_running: bool = option(
        "copy a study that is being worked on, as it is at this moment", False
    )
    artifacts: tuple[str, str] | None = option(
        "copy the files of trials, too: two directories, or s3://BUCKET",
        None,
        metavar=("FROM", "TO"),
    )

    def __post_init__(self) -> None:
        if self.study is None and not self.all:
            raise UserError("--study is missing; write a study's name, or --all")


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(MoveOptions, argv, "move", __doc__)
    import optuna

    from .run import move_studies

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for line in move_studies(
        options.source, options.to, options.study, options.while_running, options.artifacts
    ):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
