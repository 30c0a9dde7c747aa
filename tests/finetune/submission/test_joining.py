"""How modules become one file: what is dropped, what is kept, and what is refused."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

from finetune.submission.folding import fold
from finetune.submission.joining import JoinError, join


def source(text: str) -> str:
    return textwrap.dedent(text).lstrip("\n")


def joined(sources: dict[str, str], entry: str = "a") -> str:
    texts = {name: source(text) for name, text in sources.items()}
    result = join(texts, (entry, "main"), [(entry, "main")])
    return "\n\n\n".join([result.imports, *result.first, result.rest])


# Branches


def folded(text: str, **values: Any) -> str:
    return fold(source(text), values)[0]


@pytest.mark.parametrize(
    ("rank", "kept"),
    [
        (0, "def f(recipe: Recipe) -> None:\n    first()\n    last()\n"),
        (
            2,
            "def f(recipe: Recipe) -> None:\n    first()\n    # Why.\n    if recipe.rank:\n"
            "        low()\n    last()\n",
        ),
    ],
)
def test_a_branch_that_is_not_taken_goes_with_its_comment(rank: int, kept: str) -> None:
    text = """
        def f(recipe: Recipe) -> None:
            first()
            # Why.
            if recipe.rank:
                low()
            last()
    """
    assert folded(text, rank=rank) == kept


def test_what_comes_after_a_return_goes() -> None:
    text = """
        def f(recipe: Recipe) -> int:
            if recipe.kind == "a":
                # The first.
                return 1
            if recipe.kind != "b":
                return 3
            return 2
    """
    start = "def f(recipe: Recipe) -> int:\n"
    assert folded(text, kind="a") == start + "    # The first.\n    return 1\n"
    assert folded(text, kind="b") == start + "    return 2\n"
    assert folded(text, kind="c") == start + "    return 3\n"


def test_of_two_branches_and_of_two_expressions_one_stays() -> None:
    text = """
        def f(recipe: Recipe) -> int:
            if recipe.on:
                x = 1
            else:
                x = 2
            return x if recipe.kind == "a" else -x
    """
    start = "def f(recipe: Recipe) -> int:\n"
    assert folded(text, on=True, kind="a") == start + "    x = 1\n    return x\n"
    assert folded(text, on=False, kind="b") == start + "    x = 2\n    return -x\n"


def test_the_first_of_several_conditions_may_decide() -> None:
    text = "def f(recipe: Recipe):\n    if recipe.on {} x():\n        go()\n    end()\n"
    gone = "def f(recipe: Recipe):\n    end()\n"
    assert folded(text.format("and"), on=False) == gone
    for word, on in (("and", True), ("or", False)):
        assert folded(text.format(word), on=on) == text.format(word)


def test_attributes_and_copies_that_always_hold_the_recipe_count_as_it() -> None:
    text = """
        class C:
            def __init__(self, recipe: Recipe) -> None:
                self.recipe = recipe

            def f(self) -> None:
                r = self.recipe
                if r.on:
                    go()
                if self.recipe.on:
                    go()
    """
    assert "go" not in folded(text, on=False)


_BRANCH = "if recipe.on:\n            go()\n"


@pytest.mark.parametrize(
    "text",
    [
        f"def f(recipe):\n        {_BRANCH}        end()\n",
        f"def f(recipe: Other):\n        {_BRANCH}        end()\n",
        f"def f(recipe: Recipe):\n        recipe = x()\n        {_BRANCH}        end()\n",
        f"def f(recipe: Recipe):\n    for recipe in x():\n        {_BRANCH}        end()\n",
        f"def f(recipe: Recipe):\n    with x() as recipe:\n        {_BRANCH}        end()\n",
        f"def f(recipe: Recipe):\n    def g(recipe):\n        {_BRANCH}    g(1)\n",
        "def f(recipe: Recipe):\n    if warp.on:\n        go()\n    end()\n",
        "def f(recipe: Recipe):\n    if x and recipe.on:\n        go()\n    end()\n",
        "class C:\n    def a(self, recipe: Recipe):\n        self.recipe = recipe\n"
        "    def b(self):\n        self.recipe = other()\n"
        "    def f(self):\n        if self.recipe.on:\n            go()\n        end()\n",
    ],
    ids=["untyped", "other", "rebound", "loop", "with", "inner", "not-it", "and", "attribute"],
)
def test_what_may_be_something_else_is_left_alone(text: str) -> None:
    assert fold(text, {"on": False}) == (text, frozenset())


def test_the_fields_that_decided_are_told() -> None:
    text = (
        "def f(recipe: Recipe):\n    if recipe.a:\n        go()\n    if recipe.b:\n        go()\n"
    )
    assert fold(text, {"a": 0, "b": 1, "c": 0})[1] == {"a"}


# Modules


A = '''
    """The call."""

    from __future__ import annotations

    import math
    from os import path, sep

    import torch

    from .b import helper

    # How many.
    N = 3  # of them
    UNUSED = 4


    def main() -> int:
        return helper(N) + math.floor(1.5)


    def other() -> str:
        return sep
'''
B = '''
    """Parts.

    Of two lines.
    """

    import math
    from os import path


    @decorated
    def helper(n: int) -> int:
        return n + len(path.join("a", "b")) + Used().f(n)


    def decorated(f):
        return f


    class Used:
        """Used."""

        def f(self, n):
            return self._g(n)

        def _g(self, n):
            return math.ceil(n)

        def unused(self):
            return never()


    def never() -> None: ...
'''


def test_what_is_reachable_is_kept_as_text_and_in_order() -> None:
    text = joined({"a": A, "b": B})
    assert text == source(
        '''
        from __future__ import annotations

        import math
        from os import path


        def main() -> int:
            return helper(N) + math.floor(1.5)


        # How many.
        N = 3  # of them


        # ------------------------------------------------------------------------------
        # Parts.
        #
        # Of two lines.

        @decorated
        def helper(n: int) -> int:
            return n + len(path.join("a", "b")) + Used().f(n)


        def decorated(f):
            return f


        class Used:
            """Used."""

            def f(self, n):
                return self._g(n)

            def _g(self, n):
                return math.ceil(n)
        '''
    )


def test_methods_that_a_base_class_may_call_are_kept() -> None:
    text = "class C(Base):\n    def forward(self): ...\n\n\ndef main():\n    return C()\n"
    assert "def forward" in joined({"a": text})


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            {
                "a": "from .b import f\nX = 1\ndef main():\n    return f(X)\n",
                "b": "X = 2\ndef f(x):\n    return X\n",
            },
            "X is bound in two modules",
        ),
        (
            {
                "a": "from .b import f\nfrom os import path\ndef main():\n    return f(path)\n",
                "b": "from sys import path\ndef f(x):\n    return path\n",
            },
            "two imports bind path",
        ),
        (
            {
                "a": "from .b import f\nimport math\ndef main():\n    return f(math)\n",
                "b": "math = 2\ndef f(x):\n    return math\n",
            },
            "math is bound in two modules",
        ),
        (
            {
                "a": "from .b import f\ndef main():\n    return f(min(1, 2))\n",
                "b": "def min(x):\n    return 1\ndef f(x):\n    return min(x)\n",
            },
            "min hides a builtin",
        ),
        ({"a": "from .b import f as g\ndef main():\n    return g()\n"}, "line 1: write from"),
        ({"a": "from . import b\ndef main():\n    return b.f()\n"}, "line 1: write from"),
        ({"a": "if True:\n    X = 1\ndef main():\n    return X\n"}, "line 1: no definition"),
        ({"a": "X = 1\n"}, "a.py does not define main"),
        (
            {"a": "from .b import f\ndef main():\n    return f()\n", "b": "X = 1\n"},
            "b.py does not define f",
        ),
    ],
)
def test_what_can_not_be_joined_is_refused(sources: dict[str, str], message: str) -> None:
    with pytest.raises(JoinError, match=message):
        joined(sources)


def test_the_same_import_in_two_modules_and_a_clash_of_what_is_dropped_are_fine() -> None:
    a = "from .b import f\nimport math\nX = 1\ndef main():\n    return f(math)\n"
    b = "import math\nX = 2\ndef f(x):\n    return math\n"
    text = joined({"a": a, "b": b})
    assert text.count("import math") == 1
    assert "X" not in text
