"""Measure a study's best few recipes again, where no trial was measured, and name the winner."""

from __future__ import annotations

from collections.abc import Sequence

from ..arguments import parse
from ..errors import run_command
from ..process.devices import choose_device
from ..process.logging import info, start_log
from ..process.signals import StopError, acknowledge_stop, raise_on_signals
from .options import ConfirmOptions

# Torch and Optuna take seconds to import; `--help` needs neither.


def main(argv: Sequence[str] | None = None) -> int:
    epilog = "Exit codes: 0 confirmed, 1 no recipe is feasible, 2 bad input, 130 interrupted."
    options = parse(ConfirmOptions, argv, "confirm", __doc__, epilog)
    raise_on_signals()
    start_log("confirm")
    try:
        return _run(options)
    except StopError as stop:
        acknowledge_stop()
        info(f"stopped by {stop}; finished calls are kept, and the same command goes on from there")
        return stop.exit_code


def _run(options: ConfirmOptions) -> int:
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
        storage.database.patience.limit_s = config.recovery.patience_s
        study = load_study(storage, config.name)
        from .run import confirm

        code = confirm(config, study, options)
        if code == 0:
            from ..dashboard.notes import Story

            url = config.storage_url(options.storage)
            Story(config, options.study, url, study, storage).refresh(every_s=0.0)
        return code
    finally:
        storage.database.engine.dispose()


if __name__ == "__main__":
    run_command(main)
