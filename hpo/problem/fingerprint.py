"""Digests of the code that losses depend on."""

from __future__ import annotations

import ast
import io
import tokenize

from finetune.submission.imports import needed_modules

from .base import short_digest

# Modules of `finetune` that a loss depends on, together with everything that they import: those of
# the data and the evaluation, and for a call of the recipe also `adapt`.
_EVALUATION = ("data.runes", "model.checkpoints", "scoring.cost", "scoring.estimators")
_ENTRIES = ("adapt", *_EVALUATION)
_WITH_DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_digest() -> str:
    """Digest of the modules that losses depend on, without comments and docstrings."""
    return short_digest("".join(map(_without_words, needed_modules(*_ENTRIES).values())))


def file_digest(text: str) -> str:
    """Digest of a user's file and the modules that score its result, without comments."""
    modules = "".join(map(_without_words, needed_modules(*_EVALUATION).values()))
    try:
        return short_digest(modules + _without_words(text))
    except (SyntaxError, ValueError, tokenize.TokenError):  # not Python
        return short_digest(modules + text)


def _without_words(source: str) -> str:
    """The source without comments, docstrings and blank lines, which can't change a loss."""
    source = source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    lines = source.split("\n")  # not `splitlines`, which splits at more characters
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _WITH_DOCSTRINGS) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            first, end = docstring.lineno - 1, docstring.end_lineno or docstring.lineno
            lines[first:end] = [""] * (end - first)
    return "".join(f"{line.rstrip()}\n" for line in lines if line.strip())
