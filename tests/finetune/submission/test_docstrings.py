"""Docstrings of the file: up to their first section, but for those that are called from outside."""

from __future__ import annotations

import ast
import textwrap

import pytest

from finetune.submission.docstrings import shortened

SOURCE = textwrap.dedent(
    '''
    """A module.

    Raises:
        Nothing is cut here.
    """


    class Box:
        """Holds it.

        In two paragraphs.

        Args:
            x: what.
        """

        def grown(self, by):
            """Larger: ``Args:`` is no section in a line.

            Returns:
                One.

            Raises:
                ValueError: no.
            """
            return by


    def main(x):
        """The call.

        Args:
            x: it stays.
        """


    def plain():
        """Short."""


    def bare():
        return "Args:"
    '''
)


def test_sections_go_and_paragraphs_stay() -> None:
    found = shortened(SOURCE, ("main",))
    tree = {
        node.name: ast.get_docstring(node)
        for node in ast.walk(ast.parse(found))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    }
    assert tree == {
        "Box": "Holds it.\n\nIn two paragraphs.",
        "grown": "Larger: ``Args:`` is no section in a line.",
        "main": "The call.\n\nArgs:\n    x: it stays.",
        "plain": "Short.",
        "bare": None,
    }
    assert ast.get_docstring(ast.parse(found)) == ast.get_docstring(ast.parse(SOURCE))
    assert '"""Larger: ``Args:`` is no section in a line."""' in found


@pytest.mark.parametrize("source", ["", "x = 1\n", "def f():\n    pass\n"])
def test_what_has_no_docstrings_stays(source: str) -> None:
    assert shortened(source, ()) == source
