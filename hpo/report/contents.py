"""Which sections of a study's story go into the report, the summary and the confirmation."""

from __future__ import annotations

from collections.abc import Iterator

from ..storage.compressed import is_published
from ..storage.url import sqlite_file
from ..study.config import StudyConfig
from ..study.confirmation import Confirmation
from .data import StudyData
from .document import Document, Section
from .sections.augmentations import augmentations_section
from .sections.confirmation import candidates_section, confirmed_lead
from .sections.events import events_section
from .sections.history import history_section
from .sections.instances import instances_section
from .sections.next_steps import next_section
from .sections.outcomes import outcomes_section
from .sections.overview import manifest_section, overview_section
from .sections.parameters import parameters_section
from .sections.pictures import pictures_section
from .sections.recipe import copy_section, recipe_section
from .sections.winner import lead, winner_section

# Sections of the report that are also in a study's note in the dashboard.
NOTE_SECTIONS = ("best", "recipe", "parameters", "outcomes", "study", "next")


def report_of(data: StudyData) -> Document:
    """The whole report, from the result to the manifest.

    Raises:
        UserError: the study's URL is not a database URL.
    """
    return _document(data, _sections(data))


def summary_of(data: StudyData) -> Document:
    """The summary that a worker prints at its end: the result, its recipe, what to do next.

    Sections that take long to compute are left out.
    """
    return _document(data, [recipe_section(data), next_section(data)])


def confirmation_of(config: StudyConfig, confirmed: Confirmation) -> Document:
    """The text that `hpo.confirm` prints: the winner and all candidates."""
    return Document(
        title=f"Study {config.name}",
        about="",
        lead=list(confirmed_lead(confirmed, config.instances.has_points)),
        made="",
        sections=[candidates_section(confirmed)],
    )


def _document(data: StudyData, sections: Iterator[Section] | list[Section]) -> Document:
    return Document(
        title=f"Study {data.config.name}",
        about=str(data.attrs.get("about", data.config.about)),
        lead=list(lead(data)),
        made=f"{data.now.astimezone():%Y-%m-%d %H:%M %Z}, from {_database(data.url)}",
        sections=list(sections),
    )


def _sections(data: StudyData) -> Iterator[Section]:
    yield winner_section(data)
    if data.pictures or data.picture_remarks:
        yield pictures_section(data)
    yield recipe_section(data)
    if copies := copy_section(data):
        yield copies
    yield instances_section(data)
    yield history_section(data)
    yield parameters_section(data)
    yield augmentations_section(data)
    yield outcomes_section(data)
    yield overview_section(data)
    yield events_section(data)
    yield manifest_section(data)
    yield next_section(data)


def _database(url: str) -> str:
    """The kind of the database. Its address stays private, because the page is sent to others."""
    return "SQLite" if is_published(url) or sqlite_file(url) is not None else "PostgreSQL"
