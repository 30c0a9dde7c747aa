"""The service: workers that share one study of recipes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import OpenStudy, open_study
    from .errors import DatabaseAwayError, UserError

# The public surface; docs/reference/python.md is made from it. All else may change.
__all__ = ["DatabaseAwayError", "OpenStudy", "UserError", "open_study"]

# ``python -m`` looks first where it is started, and there a file finetune.py to hand in may lie:
# the package of that name is the one beside this.
_BESIDE = str(Path(__file__).parents[1])
sys.path.insert(0, _BESIDE)
try:
    importlib.import_module("finetune")
finally:
    sys.path.remove(_BESIDE)


def __getattr__(name: str) -> Any:
    # At first use: commands import this package, and their `--help` needs none of it.
    if name in ("OpenStudy", "open_study"):
        from . import api

        return getattr(api, name)
    if name in __all__:
        from . import errors

        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
