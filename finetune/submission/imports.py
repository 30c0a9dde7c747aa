"""Which of this package's modules a module needs, read off their imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import resources


def module_source(module: str) -> str:
    """The text of ``finetune.MODULE``, such as "predict.bank"."""
    path = resources.files("finetune").joinpath(*module.split("."))
    if path.is_dir():
        return (path / "__init__.py").read_text("utf-8")
    return path.with_name(f"{path.name}.py").read_text("utf-8")  # type: ignore[attr-defined,no-any-return]


def needed_modules(*entries: str) -> dict[str, str]:
    """The modules ``entries`` and all of this package that they import, each with its text."""
    found: dict[str, str] = {}
    queue = list(entries)
    while queue:
        module = queue.pop()
        if module not in found:
            found[module] = module_source(module)
            queue += relative_imports(module, ast.parse(found[module]))
    return dict(sorted(found.items()))


def relative_imports(module: str, tree: ast.AST) -> Iterator[str]:
    """Modules that a module imports relatively, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            yield absolute_name(module, node.level, node.module)


def absolute_name(module: str, level: int, name: str) -> str:
    """What ``from ..name import`` (``level`` dots) in ``module`` names, within the package."""
    return ".".join([*module.split(".")[:-level], name])
