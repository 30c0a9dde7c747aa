"""Show a study in a browser: optuna-dashboard, read-only and made safe to leave open."""

from __future__ import annotations

from collections.abc import Sequence

from ..arguments import parse
from ..errors import run_command
from ..process.signals import StopError, raise_on_signals
from .options import DashboardOptions
from .server import serve


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(DashboardOptions, argv, "dashboard", __doc__)
    raise_on_signals()
    try:
        return serve(options)
    except StopError:
        return 0


if __name__ == "__main__":
    run_command(main)
