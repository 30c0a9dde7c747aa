"""Create a study, its tables too, without running anything; one that is there is left alone.

With --method it writes a first study file for your own file instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .arguments import DrawingsOptions, StudyOptions, option, parse
from .errors import UserError, run_command
from .process.logging import start_log
from .process.signals import StopError, raise_on_signals

# Optuna and torch take seconds to import; `--help` needs neither.


@dataclass(frozen=True, kw_only=True)
class InitOptions(DrawingsOptions, StudyOptions):
    """Which study is created, and where; or which study file is written."""

    study: str = option("a name in studies/, or the path of a study file", "", variable=True)
    method: Path | None = option(
        "a Python file with finetune_model: write a study file for it", None, metavar="FILE"
    )
    out: Path | None = option("with --method: the study file to write", None, metavar="FILE")
    wait: float = option(
        "for a database server that does not answer yet", 60.0, least=0, metavar="SECONDS"
    )


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(InitOptions, argv, "init", __doc__)
    raise_on_signals()
    start_log("init")
    try:
        print(_write_first(options) if options.method else init(options))
    except StopError as stop:
        return stop.exit_code
    return 0


def _write_first(options: InitOptions) -> str:
    from .study.first_file import write_first_study

    if options.method is None or options.out is None:
        raise UserError("--out is missing; write the study file's name, such as studies/mine.toml")
    drawings = {
        key: value if key == "train" else str(value)
        for key in ("alphabet", "drawings", "train")
        if (value := getattr(options, key)) is not None
    }
    return write_first_study(options.method, options.out, drawings)


def init(options: InitOptions) -> str:
    """Create a study unless it is there; returns one line that says how it stands.

    Raises:
        UserError: the study file, the data, the networks or the database are not usable, or the
            study is there and measures something else.
    """
    if not options.study:
        raise UserError(
            "--study is missing; write a name in studies/, or the path of a study file, "
            "or write --method FILE --out FILE for your own file"
        )
    from .study.config import load_study_file

    config = load_study_file(options.study).on_drawings(
        options.alphabet, options.drawings, options.train
    )
    url = config.storage_url(options.storage)
    import optuna
    from optuna.trial import TrialState

    from .storage.open import wait_for_server
    from .storage.tables import FINISHED
    from .storage.url import shown
    from .study.create import create
    from .study.manifest import make_manifest

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    problem = config.load_problem(options.data)
    manifest = make_manifest(config, problem)
    wait_for_server(url, options.wait)
    opened, created = create(config, url, manifest)
    try:
        opened.keeps_calls()  # workers need no right to make its table
        states = [t.state for t in created.get_trials(deepcopy=False)]
    finally:
        opened.engine.dispose()
    finished = sum(state in FINISHED for state in states)
    return (
        f"study {config.name} is ready in {shown(url)}: {len(problem.instances())} instances; "
        f"{states.count(TrialState.WAITING)} trials queued, "
        f"{states.count(TrialState.RUNNING)} running, {finished} finished"
    )


if __name__ == "__main__":
    run_command(main)
