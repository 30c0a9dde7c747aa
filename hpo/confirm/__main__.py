"""Measure a study's best few recipes again, where no trial was measured, and name the winner."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..arguments import parse
from ..errors import EXIT_FAILED, printable, run_command
from ..process.devices import choose_device, n_cores
from ..process.logging import info, start_log
from ..process.signals import StopError, acknowledge_stop, raise_on_signals
from .options import ConfirmOptions

# Imported late: torch and Optuna take seconds to import, and `--help` needs neither.
if TYPE_CHECKING:
    import optuna

    from ..study.config import StudyConfig
    from .files import Submission


def main(argv: Sequence[str] | None = None) -> int:
    epilog = "Exit code 1: no recipe is feasible."
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
    from ..storage.url import study_argument
    from ..study.config import load_study_file
    from .files import read_submissions

    config = load_study_file(options.study).on_drawings(
        options.alphabet, options.drawings, options.train
    )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    submissions = read_submissions(options.submission)
    methods = [s.method for s in submissions if s.method] or [config.load_method()]
    for method in methods:
        method.prepare(options.device, options.threads or n_cores())
    storage = open_existing(
        config.storage_url(options.storage),
        study_argument(options.study, options.storage),
        to_write=True,
    )
    try:
        # The database may be away for a while, and hours of calls must not be lost by that.
        storage.retry.limit_s = config.recovery.patience_s
        study = load_study(storage, config.name)
        storage.identify(study._study_id)
        if submissions:
            return _race(config, study, submissions, options)
        return _confirm(config, study, options)
    finally:
        storage.engine.dispose()


def _race(
    config: StudyConfig,
    study: optuna.Study,
    submissions: Sequence[Submission],
    options: ConfirmOptions,
) -> int:
    from ..report.markdown import to_terminal
    from ..study.confirmation import Left
    from .files import race_files
    from .leaderboard import leaderboard_of

    board = race_files(config, study, submissions, data=options.data, rounds=options.rounds)
    if options.json:
        print(json.dumps(board.to_json(), indent=2, ensure_ascii=False))
    else:
        print(to_terminal(leaderboard_of(config, board)))
    return 0 if board.places[0].contender.left == Left.FINALIST else EXIT_FAILED


def _confirm(config: StudyConfig, study: optuna.Study, options: ConfirmOptions) -> int:
    from ..report.contents import confirmation_of
    from ..report.markdown import to_terminal
    from .run import NoneFeasibleError, confirm

    try:
        result = confirm(
            config,
            study,
            data=options.data,
            top=options.top,
            recipes=options.recipe,
            rounds=options.rounds,
            by_wall=options.wall,
            speeds=options.speeds,
        )
    except NoneFeasibleError as error:
        print(printable(f"failed: {error}"), file=sys.stderr)
        return EXIT_FAILED
    if options.json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        print(to_terminal(confirmation_of(config, result)))
    return 0


if __name__ == "__main__":
    run_command(main)
