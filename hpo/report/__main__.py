"""Write the story of a study as one HTML page that needs no network, to send to somebody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import ArtifactsOptions, StudyOptions, option, parse
from ..artifacts.location import check_directory
from ..artifacts.store import open_store
from ..errors import UserError, check_out, run_command, write_whole

# Imported late: Optuna takes half a second to import, and `--help` does not need it.
if TYPE_CHECKING:
    from .data import StudyData


@dataclass(frozen=True, kw_only=True)
class ReportOptions(ArtifactsOptions, StudyOptions):
    """Options: which study, and where the page is written."""

    out: Path = option("the page's file, such as report.html", metavar="FILE")
    references: Path | None = option(
        "what benchmarks.references wrote (default: the rows that come with this project)",
        None,
        metavar="FILE",
    )


def main(argv: Sequence[str] | None = None) -> int:
    description = f"{__doc__} It writes nothing to the study."
    options = parse(ReportOptions, argv, "report", description)
    _check(options)
    import optuna

    from .contents import report_of
    from .html import to_html

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    page = to_html(report_of(_read(options))).encode("utf-8")
    write_whole(options.out, page)
    print(f"{options.out}: {len(page) / 1000:.0f} kB")
    return 0


def _check(options: ReportOptions) -> None:
    check_directory(options.artifacts)
    check_out(options.out)
    if not options.out.parent.is_dir():  # probably misspelt, so it is not created
        raise UserError(f"--out: {options.out.parent} is no directory; make it first")


def _read(options: ReportOptions) -> StudyData:
    from ..analysis.references import read_references
    from ..storage.open import load_study, looked_at
    from ..storage.url import study_argument
    from ..study.config import load_study_file
    from ..trial.run import runs_of
    from .data import StudyData
    from .sections.pictures import read_pictures

    config = load_study_file(options.study)
    references = read_references(options.references)
    url = config.storage_url(options.storage)
    artifacts = open_store(config.artifacts_place(options.storage, options.artifacts))
    named = study_argument(options.study, options.storage)
    with looked_at(url, named) as storage:
        study = load_study(storage, config.name)
        trials = study.get_trials(deepcopy=False)
        found = read_pictures(study, trials, artifacts)
        return StudyData(
            config=config,
            study_argument=named,
            url=url,
            attrs=study.user_attrs,
            runs=runs_of(trials),
            beats=storage.retry.call(lambda: storage.heartbeats(study._study_id)),
            now=datetime.now(UTC),
            references=references,
            pictures=found.pictures,
            picture_remarks=found.remarks,
        )


if __name__ == "__main__":
    run_command(main)
