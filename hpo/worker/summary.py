"""The summary that a worker prints at its end."""

from __future__ import annotations

from datetime import UTC, datetime

import optuna

from ..report.contents import summary_of
from ..report.data import StudyData
from ..report.markdown import to_terminal
from ..study.config import StudyConfig
from ..trial.run import runs_of


def print_summary(study: optuna.Study, config: StudyConfig, named: str, url: str) -> None:
    """Print the result, its recipe and what to do next.

    Args:
        named: the study's name or path as the user wrote it, by `study_argument`.
        url: of the study's database.
    """
    data = StudyData(
        config=config,
        study_argument=named,
        url=url,
        attrs=study.user_attrs,
        runs=runs_of(study.get_trials(deepcopy=False)),
        beats=(),
        now=datetime.now(UTC),
    )
    print(f"\n{to_terminal(summary_of(data))}")
