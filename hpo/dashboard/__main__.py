"""Show a study in a browser: optuna-dashboard, read-only and made safe to leave open."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from ..artifacts.location import check_directory
from ..errors import UserError, run_command
from ..process.signals import StopError, raise_on_signals
from .server import TOKEN_VARIABLE, serve


def main(argv: Sequence[str] | None = None) -> int:
    options = _parse(argv)
    raise_on_signals()
    try:
        return serve(options)
    except StopError:
        return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hpo.dashboard", description=__doc__)
    parser.add_argument("--study", required=True, help="name in studies/, or path of a study file")
    parser.add_argument(
        "--storage",
        help="database URL, or FILE.db.gz (default: the study file's); also $RUNES_STORAGE",
    )
    parser.add_argument("--host", default="127.0.0.1", help="listen there (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="default: 8080; 0: a free one")
    parser.add_argument("--open", action="store_true", help="open a browser")
    parser.add_argument(
        "--allow-writes", action="store_true", help="let the dashboard change and delete studies"
    )
    parser.add_argument(
        "--artifacts",
        metavar="PLACE",
        help="pictures of trials: a directory, s3://BUCKET or none (default: the study file's); "
        "also $RUNES_ARTIFACTS",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"ask for the token in this file; also the token itself in ${TOKEN_VARIABLE}",
    )
    parser.add_argument(
        "--no-token", action="store_true", help="let everyone in who can reach --host"
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which browsers reach the server; may be repeated",
    )
    parser.add_argument(
        "--proxy",
        nargs="?",
        const="127.0.0.1",
        metavar="ADDRESS",
        help="believe X-Forwarded-Proto and -For of the proxy at this address "
        "(without one: 127.0.0.1)",
    )
    options = parser.parse_args(argv)
    if not 0 <= options.port <= 65535:
        raise UserError(f"--port is {options.port}; write one from 1 to 65535, or 0 for a free one")
    check_directory(options.artifacts)
    if options.proxy is not None and not _is_address(options.proxy):
        raise UserError(f"--proxy is {options.proxy}; write the IP address that it connects from")
    return options


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    run_command(main)
