"""Print a script that completes commands and options in a shell."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.arguments import PACKAGE

from .arguments import make_parser, option, parse
from .commands import first_line, load, modules
from .errors import run_command

_SHELLS = ("bash", "zsh", "tcsh")
_EPILOG = (
    f"For bash: {PACKAGE} completion > ~/.local/share/bash-completion/completions/{PACKAGE}. "
    f"For zsh: {PACKAGE} completion --shell zsh > DIRECTORY/_{PACKAGE}, a DIRECTORY of $fpath."
)


@dataclass(frozen=True, kw_only=True)
class CompletionOptions:
    """For which shell."""

    shell: str = option("bash, zsh or tcsh", "bash", choices=_SHELLS)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(CompletionOptions, argv, "completion", __doc__, _EPILOG)
    import shtab

    print(shtab.complete(whole_parser(), shell=options.shell))
    return 0


def whole_parser() -> ArgumentParser:
    """The console script's parser: every command with its options."""
    import shtab

    parser = ArgumentParser(prog=PACKAGE)
    commands = parser.add_subparsers()
    for name, module in modules().items():
        own = command_parser(name, module)
        for action in own._actions:
            if action.type is Path or action.metavar in ("FILE", "DIR") or action.dest == "study":
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        commands.add_parser(name, parents=[own], add_help=False, help=first_line(module))
    return parser


def command_parser(name: str, module: str) -> ArgumentParser:
    """The parser of a command: of its ``NameOptions`` or ``Options``, or what it makes itself."""
    code = load(module)
    made = getattr(code, "make_parser", None)
    if made is not None and made is not make_parser:
        parser: ArgumentParser = made()
        return parser
    options = getattr(code, f"{name.capitalize()}Options", None) or code.Options
    return make_parser(options, name, None)


if __name__ == "__main__":
    run_command(main)
