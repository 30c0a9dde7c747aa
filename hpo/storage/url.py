"""Database URLs: which are accepted, and how they are printed without passwords."""

from __future__ import annotations

import shlex
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from ..errors import UserError
from .compressed import is_published
from .dialects import IN_MEMORY, dialect_of

__all__ = ["IN_MEMORY", "hide_passwords", "parse_url", "shown", "sqlite_file", "study_argument"]


def shown(url: str) -> str:
    """The URL without passwords; the name of a compressed file is returned as it is.

    Raises:
        UserError: it is not a database URL.
    """
    if is_published(url):
        return url
    parse_url(url)
    parsed = make_url(url)
    secret = [name for name in parsed.query if "password" in name]
    return parsed.difference_update_query(secret).render_as_string(hide_password=True)


def parse_url(url: str) -> sa.URL:
    """Parse a database URL; for PostgreSQL the driver that this project installs is filled in.

    Raises:
        UserError: it is not a URL, or of a database that is not supported.
    """
    if is_published(url):
        raise UserError(
            f"{url} is compressed, which only status, dashboard and report read; "
            "unpack it by gunzip --keep, and write sqlite:///FILE.db"
        )
    try:
        parsed = make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise UserError(
            "storage is no database URL; write one like sqlite:///runes.db "
            "or postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from error
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise UserError(
            f"storage is on {parsed.drivername}; write sqlite:///FILE.db or postgresql://..."
        )
    return parsed


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite database, `IN_MEMORY` if it has none; None for a server's database.

    Raises:
        UserError: as in `parse_url`.
    """
    parsed = parse_url(url)
    return dialect_of(parsed).file(parsed)


def study_argument(study: str, storage: str | None) -> str:
    """The text after ``--study`` in a command that names the same study in the same database.

    Args:
        study: the study as the user named it.
        storage: value of ``--storage``; None if it was not given. A compressed file is left out,
            because most commands can't open one.

    Raises:
        UserError: the storage is not a database URL.
    """
    named = shlex.quote(study)
    if storage is None or is_published(storage):
        return named
    return f"{named} --storage {shlex.quote(shown(storage))}"


def hide_passwords(message: str, url: str) -> str:
    """Replace the URL's passwords in a message by asterisks."""
    parsed = parse_url(url)
    secrets = [v for name, v in parsed.query.items() if "password" in name]
    for password in map(str, filter(None, [parsed.password, *secrets])):
        message = message.replace(password, "***")
    return message
