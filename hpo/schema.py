"""Print the JSON schema of study files, by which an editor completes and checks them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from .arguments import parse
from .errors import run_command

_EPILOG = (
    "Write it to a file once, and name that in the first line of a study file: "
    "#:schema ./study.schema.json (read by Even Better TOML, Taplo and others)."
)


@dataclass(frozen=True, kw_only=True)
class SchemaOptions:
    """There are none."""


def main(argv: Sequence[str] | None = None) -> int:
    parse(SchemaOptions, argv, "schema", __doc__, _EPILOG)
    from .study.schema import study_schema

    print(json.dumps(study_schema(), indent=2))
    return 0


if __name__ == "__main__":
    run_command(main)
