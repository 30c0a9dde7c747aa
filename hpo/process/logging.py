"""Log lines on standard error, for people and for grep: time, process, message."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

from tqdm import tqdm

from ..errors import printable

_LOGGER = logging.getLogger("hpo")


class _BesideBars(logging.Handler):
    """Writes a line above progress bars instead of into them."""

    def emit(self, record: logging.LogRecord) -> None:
        write_line(self.format(record))


def write_line(line: str) -> None:
    """Write a line to standard error, above progress bars; it is lost if nobody reads it."""
    # A closed terminal or a reader that ended must not stop the work.
    with suppress(OSError):
        tqdm.write(printable(line), file=sys.stderr)
        sys.stderr.flush()


def start_log(who: str) -> None:
    """Send this process's log to standard error.

    Args:
        who: name of the process, such as ``host:pid``, printed after the time in each line.
    """
    handler = _BesideBars()
    handler.setFormatter(logging.Formatter(f"%(asctime)s {who} %(message)s", "%Y-%m-%d %H:%M:%S"))
    _LOGGER.handlers = [handler]
    if _LOGGER.level == logging.NOTSET:  # neither --quiet nor --verbose has set it
        _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False


def no_bars() -> bool | None:
    """tqdm's argument ``disable``: True with ``--quiet``; None shows bars on a terminal only."""
    return None if _LOGGER.isEnabledFor(logging.INFO) else True


def debug(message: str) -> None:
    """Log a detail, which ``--verbose`` shows."""
    _LOGGER.debug(message)


def info(message: str) -> None:
    """Log that something went as it should."""
    _LOGGER.info(message)


def warn(message: str) -> None:
    """Log something that a person may want to look at."""
    _LOGGER.warning("warning: %s", message)
