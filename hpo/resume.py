"""Let the workers of a paused study go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .arguments import StudyOptions, parse
from .errors import printable, run_command


@dataclass(frozen=True, kw_only=True)
class Options(StudyOptions):
    """Which study."""


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(Options, argv, "resume", __doc__)
    from .study.control import ask
    from .study.living import opened

    with opened(options) as living:
        control = ask(living.storage, living.id, "resume")
    print(printable(f"{control}: workers go on within a second"))
    return 0


if __name__ == "__main__":
    run_command(main)
