"""Copy studies to another database, exactly, and prove it; the source stays as it is."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from ..arguments import PREFIX
from ..errors import run_command

# Optuna takes half a second to import, and `--help` needs none of it.


def main(argv: Sequence[str] | None = None) -> int:
    options = _parse(argv)
    import optuna

    from .run import move_studies

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for line in move_studies(
        options.source, options.to, options.study, options.while_running, options.artifacts
    ):
        print(line, flush=True)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hpo.move", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--study",
        action="append",
        help="its name in the source or in studies/, or path of a study file; may be repeated",
    )
    which.add_argument("--all", action="store_true", help="every study of the source")
    for name, dest, text in (("from", "source", "has the studies"), ("to", "to", "gets them")):
        variable = PREFIX + name.upper()
        parser.add_argument(
            f"--{name}",
            dest=dest,
            metavar="URL",
            default=os.environ.get(variable),
            help=f"the database that {text}; also ${variable}",
        )
    parser.add_argument(
        "--while-running",
        action="store_true",
        help="copy a study that is being worked on, as it is at this moment",
    )
    parser.add_argument(
        "--artifacts",
        nargs=2,
        metavar=("FROM", "TO"),
        help="copy the files of trials, too: two directories, or s3://BUCKET",
    )
    options = parser.parse_args(argv)
    for name, url in (("from", options.source), ("to", options.to)):
        if not url:
            parser.error(
                f"--{name} is missing; write a URL like sqlite:///runes.db or "
                f"postgresql://USER:PASSWORD@HOST/DATABASE ({PREFIX}{name.upper()})"
            )
    return options


if __name__ == "__main__":
    run_command(main)
