"""Measure a study's best few recipes again, where no trial was measured, and name the winner."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from finetune.data.options import add_drawings_options
from finetune.errors import UserError, run_command

from ..process.devices import choose_device
from ..process.logging import info, start_log
from ..process.signals import StopError, acknowledge_stop, raise_on_signals

# Torch and Optuna take seconds to import; `--help` needs neither.


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    for name, least in (("top", 0), ("rounds", 1), ("threads", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}; write {least} or more")
    raise_on_signals()
    start_log("confirm")
    try:
        return _run(options)
    except StopError as stop:
        acknowledge_stop()
        info(f"stopped by {stop}; finished calls are kept, and the same command goes on from there")
        return stop.exit_code


def _run(options: argparse.Namespace) -> int:
    choose_device(options.device)
    import optuna

    from ..storage.open import load_study, open_existing
    from ..study.config import load_study_file

    config = load_study_file(options.study).on_drawings(
        options.alphabet, options.drawings, options.train
    )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_existing(config.storage_url(options.storage), options.study)
    try:
        # It may be away for a while, and hours of measuring shall not be lost to that.
        storage.retry.limit_s = config.recovery.patience_s
        study = load_study(storage, config.name)
        from .run import confirm

        code = confirm(config, study, options)
        if code == 0:
            from ..dashboard.notes import Story

            url = config.storage_url(options.storage)
            Story(config, options.study, url, study, storage).refresh(every_s=0.0)
        return code
    finally:
        storage.engine.dispose()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hpo.confirm",
        description=__doc__,
        epilog="Exit codes: 0 confirmed, 1 no recipe is feasible, 2 bad input, 130 interrupted.",
    )
    add = parser.add_argument
    add("--study", required=True, help="name in studies/, or path of a study file")
    add("--storage", help="database URL (default: the study file's); also $RUNES_STORAGE")
    add_drawings_options(parser, "the study file's")
    add("--top", type=int, default=8, metavar="N", help="best trials that take part (default: 8)")
    add(
        "--recipe",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a recipe in JSON that takes part as well; may be repeated",
    )
    add("--rounds", type=int, default=3, metavar="N", help="of halving (default: 3; 1: none)")
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add("--threads", type=int, help="CPU threads (default: the cores)")
    add("--json", action="store_true", help="print the result as one JSON object (docs/confirm.md)")
    return parser


if __name__ == "__main__":
    run_command(main)
