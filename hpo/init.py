"""Create a study, its tables too, without running anything; one that is there is left alone."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from finetune.data.options import add_drawings_options
from finetune.errors import UserError, run_command

from .arguments import PREFIX
from .process.logging import start_log
from .process.signals import StopError, raise_on_signals

_WAIT_S = 60.0

# Optuna and torch take seconds to import; `--help` needs neither.


def main(argv: Sequence[str] | None = None) -> int:
    options = _parse(argv)
    raise_on_signals()
    start_log("init")
    try:
        words = {name: getattr(options, name) for name in ("alphabet", "drawings", "train")}
        print(init(options.study, options.storage, options.data, options.wait, **words))
    except StopError as stop:
        return stop.exit_code
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hpo.init", description=__doc__)
    study = os.environ.get(f"{PREFIX}STUDY") or None
    parser.add_argument(
        "--study",
        default=study,
        required=study is None,
        help=f"name in studies/, or path of a study file; also ${PREFIX}STUDY",
    )
    parser.add_argument(
        "--storage", help=f"database URL (default: the study file's); also ${PREFIX}STORAGE"
    )
    add_drawings_options(parser, "the study file's")
    parser.add_argument(
        "--wait",
        type=float,
        default=_WAIT_S,
        metavar="SECONDS",
        help=f"for a database server that does not answer yet (default: {_WAIT_S:g})",
    )
    options = parser.parse_args(argv)
    if not 0 <= options.wait < float("inf"):
        raise UserError(f"--wait is {options.wait:g}; write seconds, 0 or more")
    return options


def init(
    study: str,
    storage: str | None,
    data: Path | None,
    wait_s: float,
    *,
    alphabet: str | None = None,
    drawings: Path | None = None,
    train: int | None = None,
) -> str:
    """Create a study unless it is there; returns one line that says how it stands.

    Args:
        storage: database URL; None: the environment's, else the study file's.
        data: see `finetune.data.runes.open_source`.
        alphabet, drawings, train: see `hpo.study.config.StudyConfig.on_drawings`.

    Raises:
        UserError: the study file, the data, the networks or the database are not usable, or the
            study is there and measures something else.
    """
    from .study.config import load_study_file

    config = load_study_file(study).on_drawings(alphabet, drawings, train)
    url = config.storage_url(storage)
    import optuna
    from optuna.trial import TrialState

    from .problem.instances import load_measuring
    from .storage.open import wait_for_server
    from .storage.tables import FINISHED
    from .storage.url import shown
    from .study.create import create

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    measuring = load_measuring(config, data)
    wait_for_server(url, wait_s)
    opened, created = create(config, url, measuring.manifest)
    try:
        states = [t.state for t in created.get_trials(deepcopy=False)]
    finally:
        opened.engine.dispose()
    finished = sum(state in FINISHED for state in states)
    return (
        f"study {config.name} is ready in {shown(url)}: {len(measuring.instances)} instances; "
        f"{states.count(TrialState.WAITING)} trials queued, "
        f"{states.count(TrialState.RUNNING)} running, {finished} finished"
    )


if __name__ == "__main__":
    run_command(main)
