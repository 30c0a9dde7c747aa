"""Output files of commands: checked before the work begins, and written atomically."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from .errors import UserError


def check_out(path: Path, option: str = "--out") -> None:
    """Check that a file can be written at ``path``, before the work begins.

    Args:
        option: name of the option, for messages.

    Raises:
        UserError: there is something else than a file, or no right to write.
    """
    try:
        if path.is_dir():
            raise UserError(f"{option}: {path} is a directory; write a file's name")
        if path.exists() and not path.is_file():
            raise UserError(f"{option}: {path} is no regular file; write another name")
        _check_directory(path.parent, f"{option}: {path}")
    except OSError as error:  # the name is too long, or a directory can't be entered
        raise UserError(f"{option}: {_short(path)} can't be written: {error.strerror}") from error


def check_out_directory(path: Path, option: str = "--out") -> None:
    """Create a directory if need be, and check that files can be written in it.

    Raises:
        UserError: there is something else than a directory, or no right to write.
    """
    try:
        _check_directory(path, f"{option}: {path}")
    except OSError as error:
        raise UserError(f"{option}: {_short(path)} can't be written: {error.strerror}") from error


def write_whole(path: Path, content: bytes, option: str = "--out") -> None:
    """Write a file atomically: under another name first, which is then changed.

    Links are kept, and missing directories are created.

    Raises:
        UserError: the file can't be written.
    """
    check_out(path, option)
    there = path.resolve()
    beside = there.with_name(f".{os.getpid()}.part")  # short: the own name may be long
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
