"""Write a first study file for a user's own `finetune_model`: every parameter with a range."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, write_whole
from ..formatting import counted
from ..problem.base import Field
from ..problem.user_file.parameters import (
    UserFile,
    parse_user_file,
    read_text,
    require_parameters,
)
from .config import StudyConfig

# Runes of the Futhorc for trials; the others are left for `hpo.confirm`.
_RUNES = (
    *("character02", "character14", "character22", "character09"),
    *("character29", "character06", "character18", "character25"),
)
# Words in names of parameters, which are split at underscores.
_RATES = {"lr", "rate", "decay", "wd", "l2", "eps"}
_COUNTS = {"steps", "step", "epochs", "epoch", "iterations", "iters", "iter"}
_SHARES = {"warmup", "dropout", "prob", "probability", "p", "share", "frac", "fraction", "ratio"}
_SIZES = {"deg": 15.0, "degrees": 15.0, "angle": 15.0, "rotation": 15.0, "px": 3.0, "shift": 3.0}
_LEFT_ALONE = {
    *("seed", "workers", "verbose", "every", "device", "deadline", "seconds", "limit", "budget"),
    *("s", "timeout", "path", "dir"),  # a name that ends in _s has seconds
}


def write_first_study(method: Path, out: Path, drawings: Mapping[str, Any]) -> str:
    """Write a study file for a user's file; returns advice on what to do with it.

    Args:
        method: the user's file.
        out: the study file; it must not exist.
        drawings: keys of ``[instances]`` that name drawings; empty: Omniglot's Futhorc.

    Raises:
        UserError: the file has no parameters, or ``out`` exists or can't be written.
    """
    if out.suffix != ".toml":
        raise UserError(f"--out is {out}; write a name that ends in .toml")
    if out.exists():
        raise UserError(f"{out} is there already; write another name, or remove it")
    file = parse_user_file(method, read_text(method))
    require_parameters(file, None)
    text = first_study(file, out.stem, drawings)
    StudyConfig.model_validate(tomllib.loads(text))  # check that commands can read it
    write_whole(out, text.encode())
    others = "".join(
        f"; it has {kind}, too ({', '.join(names)}), which method.parameters may ask for"
        for kind, names in file.others.items()
    )
    n = counted(len(file.parameters), "parameter")
    return (
        f"wrote {out}: {n} of {method} ({file.style}: {', '.join(file.parameters)}){others}.  Look "
        f"at the ranges, then start: python -m hpo.worker --study {out}"
    )


def first_study(file: UserFile, name: str, instances: Mapping[str, Any]) -> str:
    """The text of a study file, ready to run and to edit.

    Args:
        name: name of the study.
        instances: keys of ``[instances]`` beside the defaults; empty: runes of the Futhorc.
    """
    fields = {n: p.field for n, p in file.parameters.items()}
    spaces = {n: _space(n, field) for n, field in fields.items() if not _is_left_alone(n)}
    counts = [n for n, f in fields.items() if f.kind == "int" and set(_words(n)) & _COUNTS]
    steps = counts[0] if len(counts) == 1 and "step" in counts[0].lower() else None
    lines = [
        f"# A search over the parameters of {file.path}.  docs/yours.md leads through it, and",
        "# docs/studies.md lists every key.",
        "",
        f"name = {_toml(name)}",
        f"storage = {_toml(f'sqlite:///{name}.db')}",
        "limit_s = 150.0  # a call that takes this long is stopped",
        "margin_s = 30.0  # one that takes longer than limit_s less this is never called best",
        "",
        "[method]",
        f"file = {_toml(str(file.path))}  # from where you start the commands",
        f"parameters = {_toml(file.style)}",
        *([f"steps = {_toml(steps)}  # counts the steps of a call"] if steps else []),
        "# memory_gb = 4.0  # a call that uses more is ended; without it, most of what there is",
        "",
        "# Ten drawings of each rune train, the other ten score.",
        *_instances(instances),
        "",
        "[budget]",
        "seconds = 3600.0  # of each worker, after which it starts no trial",
        "",
        "# Your own values are the first trial, so that the others have to beat them.",
        "[[start]]",
        *(f"{_key(n)} = {_toml(fields[n].default)}" for n in spaces),
        "",
        "# What is sampled.  Delete what shall stay as it is in the file.",
        *(line for n, space in spaces.items() for line in _table(n, fields[n], space)),
    ]
    left = [n for n in fields if n not in spaces]
    if left:
        values = ", ".join(f"{n} = {_toml(fields[n].default)}" for n in left)
        lines += [f"# Not sampled: {values}.", "# [fixed] gives them another value.", ""]
    return "\n".join(lines)


def _instances(asked: Mapping[str, Any]) -> Iterator[str]:
    yield "[instances]"
    given: Mapping[str, Any] = asked or {"runes": list(_RUNES)}
    if "drawings" not in given:
        yield 'source = "omniglot"'
    for key, value in given.items():
        yield f"{key} = {_toml(value)}"


def _table(name: str, field: Field, space: Mapping[str, Any]) -> Iterator[str]:
    note = space.get("note", "")
    yield f"[space.{_key(name)}]" + (f"  # {field.meaning}" if field.meaning else "")
    for key, value in space.items():
        if key != "note":
            yield f"{key} = {_toml(value)}"
    if note:
        yield f"# {note}"
    yield ""


def _toml(value: Any) -> str:
    # JSON and TOML write numbers, strings, booleans and lists alike, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if name.isascii() else _toml(name)


def _words(name: str) -> list[str]:
    """The words of a name such as ``weight_decay``, ``WEIGHT_DECAY`` or ``weightDecay``."""
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower().strip("_").split("_")


def _is_left_alone(name: str) -> bool:
    return bool(_LEFT_ALONE & set(_words(name)))


def _space(name: str, field: Field) -> dict[str, Any]:
    """A range around the default, by its kind and the words of its name."""
    default = field.default
    if field.kind == "bool":
        return {"type": "choice", "choices": [False, True]}
    if field.kind == "choice":
        return {"type": "choice", "choices": list(field.choices)}
    if field.kind == "text":
        return {"type": "choice", "choices": [default], "note": "Add what else it may be."}
    words = set(_words(name))
    space = _whole(default, words) if field.kind == "int" else _number(default, words)
    low, high = space["low"], space["high"]  # rounded
    return {**space, "low": min(low, default), "high": max(high, default)}


def _whole(default: int, words: set[str]) -> dict[str, Any]:
    if default < 1:
        return {"type": "int", "low": 2 * default, "high": 4}
    most = 2 if words & _COUNTS else 4  # twice at most, because more steps may take too long
    return {"type": "int", "low": max(1, default // 4), "high": most * default, "log": True}


def _number(default: float, words: set[str]) -> dict[str, Any]:
    is_rate, is_share = bool(words & _RATES), bool(words & _SHARES)
    if default < 0:
        return _range(2 * default, 0.0)
    if default == 0:
        size = next((size for word, size in _SIZES.items() if word in words), 0.5)
        space = _range(0.0, 0.1 if is_rate and not is_share else size)
        return {**space, "note": "Its default, 0, says nothing of its scale: check the range."}
    if 0.5 <= default < 1:  # near one, such as a momentum or the decay of a mean
        return _range(max(0.0, 1 - 5 * (1 - default)), 1 - (1 - default) / 5)
    if is_share and default <= 1:
        return _range(0.0, min(1.0, 3 * default))
    factor = 10 if is_rate else 4
    return {**_range(default / factor, default * factor), "log": True}


def _range(low: float, high: float) -> dict[str, Any]:
    return {"type": "float", "low": _short(low), "high": _short(high)}


def _short(value: float) -> float:
    return float(f"{value:.3g}")
