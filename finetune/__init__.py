"""Adapting a pretrained rectified-flow network to a new class from ten drawings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapt import finetune_model

__all__ = ["finetune_model"]


def __getattr__(name: str) -> Any:
    # Imported at first use, because parts of this package work without torch, which takes seconds.
    if name in __all__:
        from . import adapt

        return getattr(adapt, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
