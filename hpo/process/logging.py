"""Lines for people and for grep: time, worker, then what happened, on standard error."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

_LOGGER = logging.getLogger("hpo")


class _BesideBars(logging.Handler):
    """Writes a line without tearing the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
        sys.stderr.flush()


def start_log(who: str) -> None:
    """Write this process's lines to standard error, each with the time and ``who``."""
    handler = _BesideBars()
    handler.setFormatter(logging.Formatter(f"%(asctime)s {who} %(message)s", "%Y-%m-%d %H:%M:%S"))
    _LOGGER.handlers = [handler]
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False


def info(message: str) -> None:
    """Something went as it should."""
    _LOGGER.info(message)


def warn(message: str) -> None:
    """Something that a person may want to look at."""
    _LOGGER.warning("warning: %s", message)
