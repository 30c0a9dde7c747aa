"""Files that commands write: checked before the work begins, and never half written."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from .errors import UserError


def check_out(path: Path, option: str = "--out") -> None:
    """Check that a file can be written there, before there is anything to write.

    Args:
        option: by which it was named.

    Raises:
        UserError: it is something else than a file, or there is no right to write it.
    """
    try:
        if path.is_dir():
            raise UserError(f"{option}: {path} is a directory; write a file's name")
        if path.exists() and not path.is_file():
            raise UserError(f"{option}: {path} is no regular file; write another name")
        _check_directory(path.parent, f"{option}: {path}")
    except OSError as error:  # too long a name, a directory that can't be entered
        raise UserError(f"{option}: {_short(path)} can't be written: {error.strerror}") from error


def check_out_directory(path: Path, option: str = "--out") -> None:
    """Check that files can be written in a directory, which is made if it is not there.

    Raises:
        UserError: it is something else, or there is no right to write in it.
    """
    try:
        _check_directory(path, f"{option}: {path}")
    except OSError as error:
        raise UserError(f"{option}: {_short(path)} can't be written: {error.strerror}") from error


def write_whole(path: Path, content: bytes, option: str = "--out") -> None:
    """Write a file beside its place and rename it, so that nobody ever reads half of it.

    A link stays one, and directories are made.

    Raises:
        UserError: it can't be written.
    """
    check_out(path, option)
    there = path.resolve()
    beside = there.with_name(f".{os.getpid()}.part")  # however long the file's own name is
    try:
        there.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        beside.replace(there)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise UserError(f"{option}: {path} can't be written: {error.strerror}") from error


def _check_directory(path: Path, what: str) -> None:
    for place in (path, *path.parents):
        if place.exists():
            break
    if not place.is_dir():
        raise UserError(f"{what} can't be written: {place} is no directory")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{what} can't be written: there is no right to write in {place}")


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:200]}..."
