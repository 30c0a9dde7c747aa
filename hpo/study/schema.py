"""The JSON schema of study files, generated from their models."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from .config import StudyConfig
from .descriptions import key_meanings


class _WithMeanings(GenerateJsonSchema):
    """Describes each key by the docstring below it in its model."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        for key, meaning in key_meanings(schema["cls"]).items():
            if meaning:
                made["properties"][key]["description"] = meaning
        return made


def study_schema() -> dict[str, Any]:
    """A JSON schema (draft 2020-12) of a study file."""
    return {
        "$schema": _WithMeanings.schema_dialect,
        **StudyConfig.model_json_schema(schema_generator=_WithMeanings),
        "title": "A study file of runes",
    }
