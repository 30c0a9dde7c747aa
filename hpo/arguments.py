"""Options of commands.  Each is declared once, as a field of the command's frozen dataclass.

The command line beats the environment, which beats the field's default.  An option that is None
takes its value from the study file (`hpo.study.config`).

Example:
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Options(StudyOptions):
    ...     best: int = option("show so many trials", 5, least=0)
    >>> parse(Options, ["--study", "runes", "--best", "3"], "status", "Print a study's status.")
    Options(study='runes', storage=None, best=3)
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from finetune.arguments import LARGEST_SEED as LARGEST_SEED
from finetune.arguments import Parser, brief

from .errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PREFIX = "RUNES_"
LARGEST_COUNT = 2**31 - 1  # databases' whole numbers are no larger
LARGEST_NUMBER = 1e9  # of seconds, some 30 years; no clock waits much longer
_LEVELS = {"-v": logging.DEBUG, "-q": logging.WARNING}
_LOGGER = logging.getLogger("hpo")

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True)
class _Option:
    """What `option` says, then what the field says."""

    text: str
    default: Any
    flag: str
    variable: bool
    least: float | None
    above: float | None
    most: float | None
    choices: Sequence[str]
    excludes: str
    extra: Mapping[str, Any]
    name: str = ""
    hint: Any = None  # without None
    many: tuple[Any, ...] = ()  # the types of a tuple

    @property
    def variable_name(self) -> str:
        return PREFIX + self.flag.removeprefix("--").replace("-", "_").upper()

    @property
    def also(self) -> str:
        return f"; also ${self.variable_name}" if self.variable else ""

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        how: dict[str, Any] = {}
        if self.hint is bool:
            how = {"action": "store_const", "const": True}
        elif self.many:
            repeats = self.many[-1] is Ellipsis
            how = {"action": "append"} if repeats else {"nargs": len(self.many)}
        text = self.text
        if self.default not in (MISSING, None, False, ()):
            shown = f"{self.default:g}" if isinstance(self.default, float) else self.default
            text += f" (default: {shown})"
        if text != argparse.SUPPRESS:
            text = text.replace("%", "%%") + self.also
        if self.flag.startswith("-"):
            parser.add_argument(self.flag, dest=self.name, help=text, **{**how, **self.extra})
        else:
            parser.add_argument(self.name, nargs="*", help=text, **self.extra)

    def value(self, text: Any, where: str) -> Any:
        """The value that ``text`` means; ``where`` is the option or the variable."""
        if self.hint is bool:
            return text
        if self.many:
            texts = [text] if isinstance(text, str) else text
            return tuple(self._one(self.many[0], one, where) for one in texts)
        return self._one(self.hint, text, where)

    def _one(self, convert: Any, text: str, where: str) -> Any:
        try:
            value = convert(text)
        except ValueError as error:
            kind = "a whole number" if convert is int else "a number"
            raise UserError(f"{where} is {brief(text)!r}; write {kind}") from error
        if convert in (int, float):
            self._check_bounds(value, f"{where} is {brief(text)}")
        if self.choices and value not in self.choices:
            raise UserError(f"{where} is {value!r}; write one of {', '.join(self.choices)}")
        return value

    def _check_bounds(self, value: float, found: str) -> None:
        most = self.most
        if most is None:
            most = LARGEST_COUNT if self.hint is int else LARGEST_NUMBER
        if self.above is not None and not value > self.above:
            raise UserError(f"{found}; write more than {self.above:g}")
        if self.least is not None and not value >= self.least:
            raise UserError(f"{found}; write {self.least:g} or more")
        if not -most <= value <= most:
            raise UserError(f"{found}; write {most:.10g} or less")


def option(
    text: str,
    default: object = MISSING,
    *,
    flag: str = "",
    variable: bool = False,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: Sequence[str] = (),
    excludes: str = "",
    **extra: Any,
) -> Any:
    """A field of a dataclass of options.

    The field's type hint decides how the text is read: ``bool`` is a switch, ``tuple[X, ...]`` an
    option that may be repeated, ``tuple[X, X]`` one with two values.

    Args:
        text: for ``--help``, which adds the default.
        default: without one the option must be given.
        flag: by default the field's name with hyphens; a name without them stands for any number
            of arguments that have no option.
        variable: whether ``RUNES_<FLAG>`` in the environment sets it as well.
        least, above: lower bounds of a number, inclusive and exclusive.
        most: its upper bound; None: the largest that `hpo.settings` names for its kind.
        excludes: options that name the same group exclude each other.
        extra: further arguments of `argparse.ArgumentParser.add_argument`.
    """
    declared = _Option(text, default, flag, variable, least, above, most, choices, excludes, extra)
    return field(default=default, metadata={"option": declared})


def json_option(keys: str) -> Any:
    """``--json``; ``keys`` says where its keys are described."""
    return option(f"print one JSON object; its keys are in {keys}", False)


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """The study and its database."""

    study: str = option("a name in studies/, or the path of a study file", variable=True)
    storage: str | None = option(
        "database URL; where a study is only read also FILE.db.gz (default: the study file's)",
        None,
        variable=True,
    )


@dataclass(frozen=True, kw_only=True)
class DrawingsOptions:
    """The drawings that a study measures on."""

    data: Path | None = option("directory of omniglot-py", None, variable=True)
    alphabet: str | None = option("of Omniglot (default: the study file's)", None, metavar="NAME")
    drawings: Path | None = option(
        "your own drawings instead: PNG files, or a folder of them for each rune "
        "(default: the study file's)",
        None,
        metavar="DIR",
    )
    train: int | None = option(
        "drawings of each rune that a call learns from (default: the study file's)",
        None,
        metavar="N",
    )


@dataclass(frozen=True, kw_only=True)
class ArtifactsOptions:
    """The place of trials' pictures."""

    artifacts: str | None = option(
        "pictures of trials: a directory, s3://BUCKET or none (default: the study file's)",
        None,
        variable=True,
        metavar="PLACE",
    )


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """The processors that a command uses."""

    device: str | None = option(
        "cpu, cuda or cuda:N (default: a GPU if there is one)", None, variable=True
    )
    threads: int | None = option("CPU threads (default: the cores)", None, variable=True, above=0)


def parse(
    options: type[T],
    argv: Sequence[str] | None,
    command: str,
    description: str | None,
    epilog: str | None = None,
) -> T:
    """Read a command line, completed from the environment, into the dataclass ``options``.

    Raises:
        UserError: an option is missing, unknown or out of its range; names it or its variable.
    """
    declared = _declared(options)
    texts = vars(make_parser(options, command, description, epilog).parse_args(argv))
    _LOGGER.setLevel(texts["level"])
    given = {one.excludes for one in declared if one.excludes and texts[one.name] is not None}
    values = {}
    for one in declared:
        text, where = texts[one.name], one.flag
        if text is None and one.variable and one.excludes not in given:
            text, where = os.environ.get(one.variable_name) or None, one.variable_name
        if text is not None:
            values[one.name] = one.value(text, where)
        elif one.default is MISSING:
            raise UserError(f"{one.flag} is missing; write {one.text}{one.also}")
    return options(**values)


def make_parser(
    options: type[DataclassInstance],
    command: str,
    description: str | None,
    epilog: str | None = None,
) -> Parser:
    """The parser of a command's ``options``, and of those that every command has."""
    parser, groups = Parser(f"hpo.{command}", description=description, epilog=epilog), {}
    level = parser.add_mutually_exclusive_group()
    for flag, name, text in (
        ("-v", "--verbose", "log details, and the traceback behind an error"),
        ("-q", "--quiet", "log warnings and errors only, and show no progress"),
    ):
        level.add_argument(
            flag, name, action="store_const", const=_LEVELS[flag], dest="level", help=text
        )
    parser.set_defaults(level=logging.INFO)
    for one in _declared(options):
        if one.excludes and one.excludes not in groups:
            groups[one.excludes] = parser.add_mutually_exclusive_group()
        one.add_to(groups.get(one.excludes, parser))
    return parser


def passed_on(
    options: DataclassInstance, environment: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Arguments and ``environment`` with which another process parses the same ``options``.

    It logs as much as this one.

    What has a variable is passed by it: a database's URL may hold a password, and every user of
    the machine sees command lines.
    """
    arguments = [flag for flag, level in _LEVELS.items() if level == _LOGGER.level]
    variables = dict(environment)
    for one in _declared(type(options)):
        value = getattr(options, one.name)
        variables.pop(one.variable_name, None)
        if value == one.default:
            continue
        if one.variable:
            variables[one.variable_name] = str(value)
        else:
            arguments += [one.flag] if value is True else [one.flag, str(value)]
    return arguments, variables


def _declared(options: type[DataclassInstance]) -> list[_Option]:
    hints = get_type_hints(options)
    declared = []
    for f in fields(options):
        hint = hints[f.name]
        if NoneType in get_args(hint):
            (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
        one: _Option = f.metadata["option"]
        flag = one.flag or f"--{f.name.replace('_', '-')}"
        many = get_args(hint) if get_origin(hint) is tuple else ()
        declared.append(replace(one, name=f.name, flag=flag, hint=hint, many=many))
    return declared
