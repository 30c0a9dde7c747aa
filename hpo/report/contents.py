"""The story of a study, section by section."""

from __future__ import annotations

from collections.abc import Iterator

from ..analysis.status import Status, status_of
from ..storage.compressed import is_published
from ..storage.url import parse_url
from .data import Given
from .document import Block, Section, Story, Text
from .sections.augmentations import augmented_section
from .sections.by_instance import by_rune_section
from .sections.course import course_section
from .sections.next_steps import advice_section
from .sections.outcomes import endings_section
from .sections.overview import standing_section, what_section
from .sections.parameters import matters_section
from .sections.recipe import recipe_section
from .sections.winner import lead, winner_section


def story_of(given: Given) -> Story:
    """Everything that the page says, from the result to what it rests on.

    Raises:
        UserError: the URL is none.
    """
    trials = [r.trial for r in given.runs]
    status = status_of(given.config, given.url, trials, given.beats, given.now, best=0)
    return Story(
        title=f"Study {given.config.name}",
        about=str(given.attrs.get("about", given.config.about)),
        lead=list(lead(given)),
        made=f"{given.now.astimezone():%Y-%m-%d %H:%M %Z}, from {_where(given.url)}",
        sections=list(_sections(given, status)),
    )


def _sections(given: Given, status: Status) -> Iterator[Section]:
    yield winner_section(given)
    if given.pictures or given.picture_remarks:
        yield _pictures_section(given)
    yield recipe_section(given)
    yield by_rune_section(given)
    yield course_section(given)
    yield matters_section(given, status)
    yield augmented_section(given)
    yield endings_section(given)
    yield standing_section(given, status)
    yield what_section(given)
    yield advice_section(given, status)


def _pictures_section(given: Given) -> Section:
    blocks: list[Block] = []
    if given.pictures:
        blocks.append(
            Text(
                "Of a call, from top to bottom: real drawings that it did not see, samples of the "
                "pretrained network, samples of the adapted one from the same noise."
            )
        )
    blocks += given.pictures
    blocks += [Text(remark, aside=True) for remark in given.picture_remarks]
    return Section("pictures", "Pictures", blocks)


def _where(url: str) -> str:
    """The kind of the database alone: where it is concerns nobody who is sent the page."""
    kind = "sqlite" if is_published(url) else parse_url(url).get_backend_name()
    return {"sqlite": "SQLite", "postgresql": "PostgreSQL"}.get(kind, kind)
