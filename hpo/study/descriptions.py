"""The meanings of a study file's keys: the docstrings below the fields of its models."""

from __future__ import annotations

import ast
import inspect
import textwrap

from pydantic import BaseModel


def key_meanings(model: type[BaseModel]) -> dict[str, str]:
    """The docstring of each field of a model, on one line; "" for fields without one.

    Pydantic can read them, too (`use_attribute_docstrings`), but does so at every import of a
    model, which would slow down every command.
    """
    meanings: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if not issubclass(kind, BaseModel) or kind is BaseModel:
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, [*body.body[1:], None], strict=True):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            text = below.value if isinstance(below, ast.Expr) else None
            said = text.value if isinstance(text, ast.Constant) else ""
            meanings[field.target.id] = " ".join(str(said).split())
    return meanings
