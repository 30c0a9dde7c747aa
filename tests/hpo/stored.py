"""Values as the service stores them."""

from __future__ import annotations

from typing import Any

from finetune.recipe import Recipe
from hpo.study.confirmation import CandidateResult, Comparisons, Confirmation, Difference


def make_confirmation(trial: int | None = 1, **changed: Any) -> Confirmation:
    """A recipe that won against the default one."""
    winner: dict[str, Any] = {"name": "best 2", "trial": trial, "digest": "abc"}
    default: dict[str, Any] = {"name": "default", "trial": None, "digest": "def"}
    row: dict[str, Any] = {
        "left": "finalist",
        "reason": None,
        "rounds": 3,
        "calls": 12,
        "longest_call_s": 79.04,
        "standard_error": 0.0031,
    }
    values: dict[str, Any] = {
        **winner,
        "loss": 0.0812,
        "standard_error": 0.0031,
        "cost": 1.62,
        "recipe": Recipe(lr=2e-3).to_dict(),
        "against": Comparisons(
            default=Difference(
                **default, difference=-0.0031, standard_error=0.0006, low=-0.0047, high=-0.0015
            )
        ),
        "confidence": 0.95,
        "units": 6,
        "instances": ("a/0 bilinear", "b/1 bilinear"),
        "table": (
            CandidateResult(**winner, **row, loss=0.0812, difference=-0.0031, cost=1.62),
            CandidateResult(**default, **row, loss=0.0843, search_loss=0.08),
        ),
        "rounds": (2,),
        "estimator": {"strata": 25, "seed": 1},
        "feasible_s": 120.0,
        "code": "0f0f0f0f0f0f",
    }
    return Confirmation(**{**values, **changed})
