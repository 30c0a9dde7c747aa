"""Samplers and pruners of Optuna, OptunaHub or a person's own, by the names of a study file.

``MODULE:CLASS`` names a class that can be imported, such as ``optuna.samplers:CmaEsSampler``;
``optunahub:PACKAGE:CLASS`` one of OptunaHub, such as
``optunahub:samplers/auto_sampler:AutoSampler``.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Collection, Mapping
from typing import Any

_HUB = "optunahub"


def check_component(
    name: str, options: Mapping[str, Any], known: Collection[str], base: type
) -> None:
    """Check a name and its options as far as that needs no network.

    Args:
        known: names without a colon, which take no options.
        base: that the class must be derived from.

    Raises:
        ValueError: there is no such class, or it does not take these options.
    """
    if name in known:
        if options:
            raise ValueError(
                f'options are for a class of your choice and name is "{name}"; leave them out, '
                f"or name a class, such as {_example(base)}"
            )
        return
    if ":" not in name:
        raise ValueError(
            f"name is {name!r}; write one of {', '.join(known)}, or a class, such as "
            f"{_example(base)}"
        )
    if not name.startswith(f"{_HUB}:"):
        make_component(name, options, base)


def make_component(
    name: str, options: Mapping[str, Any], base: type, seed: int | None = None
) -> Any:
    """An object of the class.

    Args:
        seed: passed on where the class takes one and ``options`` does not name it.

    Raises:
        ValueError: there is no such class, it does not take these options, or it needs a package
            that is missing.
    """
    found = _find(name)
    if not isinstance(found, type) or not issubclass(found, base):
        raise ValueError(f"name is {name!r}, which is no {base.__name__} of Optuna")
    taken = inspect.signature(found).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values())
    for option in options:
        if option not in taken and not open_ended:
            raise ValueError(f"options names {option!r}; {name} takes {', '.join(taken) or 'none'}")
    given = dict(options)
    if seed is not None and "seed" in taken:
        given.setdefault("seed", seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is experimental
            return found(**given)
    except Exception as error:  # whatever a class checks of its options, and how
        raise ValueError(f"{name} can't be made: {_first_line(error)}") from error


def find_function(name: str) -> Any:
    """The function that ``MODULE:FUNCTION`` names.

    Raises:
        ValueError: there is none.
    """
    if ":" not in name:
        raise ValueError(f"{name!r} is no function; write MODULE:FUNCTION")
    found = _find(name)
    if not callable(found):
        raise ValueError(f"{name} can't be called; write MODULE:FUNCTION")
    return found


def _find(name: str) -> Any:
    module, _, attribute = name.rpartition(":")
    try:
        if module.startswith(f"{_HUB}:"):
            hub = importlib.import_module(_HUB)
            return getattr(hub.load_module(module.removeprefix(f"{_HUB}:")), attribute)
        return getattr(importlib.import_module(module), attribute)
    except AttributeError as error:
        raise ValueError(f"name is {name!r}, and {module} has no {attribute}") from error
    except Exception as error:  # also of the network
        hint = "; pip install optunahub" if getattr(error, "name", None) == _HUB else ""
        raise ValueError(f"{name} can't be imported: {_first_line(error)}{hint}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _example(base: type) -> str:
    return '"optuna.' + (
        'samplers:CmaEsSampler"' if "Sampler" in base.__name__ else 'pruners:HyperbandPruner"'
    )
