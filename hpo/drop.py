"""Take a finished trial out of a study's race: it is kept, and never best.

No sampler, race or confirmation goes by it any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .arguments import StudyOptions, option, parse
from .errors import UserError, printable, run_command


@dataclass(frozen=True, kw_only=True)
class DropOptions(StudyOptions):
    """Which trial of which study, and why."""

    trial: int = option("its number", least=0, metavar="N")
    why: str | None = option("the reason, kept with the trial", None, metavar="TEXT")
    undo: bool = option("let it count again", False)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(DropOptions, argv, "drop", __doc__)
    if options.undo == (options.why is not None):
        raise UserError('write --why "..." to drop the trial, or --undo to let it count again')
    from .storage.optuna_internals import id_of
    from .study.control import mark, read_wishes
    from .study.living import opened

    with opened(options) as living:
        trials = living.study.get_trials(deepcopy=False)
        trial = next((t for t in trials if t.number == options.trial), None)
        if trial is None:
            raise UserError(
                f"study {living.config.name} has no trial {options.trial}; "
                f"its last is {len(trials) - 1}"
            )
        if not trial.state.is_finished():
            raise UserError(
                f"trial {options.trial} is {trial.state.name.lower()}; drop it when it is finished"
            )
        if options.undo and options.trial not in read_wishes(living.storage, living.id).dropped:
            raise UserError(f"trial {options.trial} is not dropped; there is nothing to undo")
        control = mark(living.storage, living.id, trial.number, id_of(trial), options.why)
    print(printable(str(control)))
    return 0


if __name__ == "__main__":
    run_command(main)
