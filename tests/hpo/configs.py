"""A study that tests start from."""

from __future__ import annotations

from typing import Any

from hpo.study.config import StudyConfig

SPACE = {"lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}}
TABLE: dict[str, Any] = {
    "name": "s",
    "storage": "sqlite://",
    "instances": {"source": "drawn"},
    "space": SPACE,
}


def make_config(**changed: Any) -> StudyConfig:
    """The study of `TABLE`, with these tables and values in place of its own."""
    return StudyConfig.model_validate({**TABLE, **changed})
