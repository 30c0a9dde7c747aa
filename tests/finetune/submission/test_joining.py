"""How modules become one file: what is dropped, what is kept, and what is refused."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import pytest

from finetune.submission.folding import fold
from finetune.submission.joining import JoinError, Section, join


def source(text: str) -> str:
    return textwrap.dedent(text).lstrip("\n")


def joined(sources: dict[str, str], *modules: str) -> str:
    """The joined text; its sections are the modules, in the order given or the alphabet's."""
    texts = {name: source(text) for name, text in sources.items()}
    sections = [Section(name.upper(), (name,)) for name in modules or sorted(sources)]
    return join(texts, ("a", "main"), sections).text


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


def test_a_condition_may_be_the_opposite() -> None:
    text = "def f(recipe: Recipe):\n    if not recipe.on:\n        go()\n    end()\n"
    assert folded(text, on=True) == "def f(recipe: Recipe):\n    end()\n"
    assert folded(text, on=False) == text


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


def test_a_field_is_compared_with_a_constant_of_the_recipes_module() -> None:
    text = "def f(recipe: Recipe):\n    if recipe.groups != ALL:\n        go()\n    end()\n"
    assert fold(text, {"groups": [1], "ALL": [1]})[1] == {"groups"}
    assert fold(text, {"groups": [], "ALL": [1]}) == (text, frozenset())
    assert fold(text, {"groups": [1]}) == (text, frozenset())


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


def with_headings(text: str) -> str:
    """Lines ``RULE A`` as the headings of sections A."""
    return re.sub(r"^RULE (\w+)$", lambda m: f"# {f' {m[1]} ':=^96}", text, flags=re.M)


def test_what_is_reachable_is_kept_as_text_and_in_order() -> None:
    text = '''
        import math as _math
        from os import path as _path

        RULE A

        # The call.

        # How many.
        _N = 3  # of them


        def main() -> int:
            return _helper(_N) + _math.floor(1.5)


        RULE B

        # Parts.
        #
        # Of two lines.

        def _decorated(f):
            return f


        @_decorated
        def _helper(n: int) -> int:
            return n + len(_path.join("a", "b")) + _Used().f(n)


        class _Used:
            """Used."""

            def f(self, n):
                return self._g(n)

            def _g(self, n):
                return _math.ceil(n)
    '''
    assert joined({"a": A, "b": B}) == with_headings(source(text))


def test_methods_that_a_base_class_may_call_are_kept() -> None:
    text = "class C(dict):\n    def forward(self): ...\n\n\ndef main():\n    return C()\n"
    assert "def forward" in joined({"a": text})


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            {
                "a": "from .b import f\nX = 1\ndef main():\n    return f(X)\n",
                "b": "_X = 2\ndef f(x):\n    return x + _X\n",
            },
            "X of a and _X of b would both be _X; give one another name",
        ),
        ({"a": "from . import b\ndef main():\n    return b.f()\n"}, "line 1: write from"),
        ({"a": "import os.path\ndef main():\n    return os.sep\n"}, "line 1: write from os.path"),
        ({"a": "if True:\n    X = 1\ndef main():\n    return X\n"}, "line 1: no definition"),
        ({"a": "X = 1\nX = 2\ndef main():\n    return X\n"}, "line 2: X is bound twice"),
        ({"a": "X = 1\ndef main():\n    global X\n    X = 2\n"}, "line 3: no `global`"),
        ({"a": "def main():\n    from .b import f\n    f()\n", "b": ""}, "no relative import"),
        ({"a": "X = 1\n"}, "a.py does not define main"),
        ({"a": "def main():\n    return nothing\n"}, "a.py does not define nothing"),
        (
            {"a": "from .b import f\ndef main():\n    return f()\n", "b": "X = 1\n"},
            "b.py does not define f",
        ),
        (
            {"a": "X = 1\ndef main():\n    _X = 2\n    return X, _X\n"},
            "main of a, line 4: X becomes _X in the file, but _X is a local name there",
        ),
        (
            {"a": "import torch.nn.functional as F\ndef main(_F):\n    return F\n"},
            "F becomes _F in the file, but _F is a local name",
        ),
        (
            {"a": "def f():\n    return X\nX = f()\ndef main():\n    return X\n"},
            "X of a and f of a need each other as the file is loaded",
        ),
        (
            {"a": "def main(n):\n    return f'{ {n: 1}[f] }'\ndef f(): ...\n"},
            "f in an f-string can't be renamed",
        ),
        (
            {"a": "x = 1\nclass C:\n    x = x\ndef main():\n    return C\n"},
            "C of a, line 3: x is a name of the class and of the module",
        ),
    ],
)
def test_what_can_not_be_joined_is_refused(sources: dict[str, str], message: str) -> None:
    with pytest.raises(JoinError, match=message):
        joined(sources)


def test_a_module_that_the_order_lacks_is_refused() -> None:
    sources = {"a": "from .b import f\ndef main():\n    return f()\n", "b": "def f(): ...\n"}
    with pytest.raises(JoinError, match=r"needs f of b, but no section lists the module b; add it"):
        joined(sources, "a")


def test_the_order_is_the_tables_and_modules_that_are_not_needed_are_passed_over() -> None:
    sources = {
        "a": "from .b import f\ndef main():\n    return f()\n",
        "b": "from .d import X\ndef f():\n    return X\n",
        "d": "X = 1\n",
    }
    text = joined(sources, "d", "a", "c", "b")
    places = [
        text.index(part) for part in ("= D =", "_X = 1", "= A =", "def main", "= B =", "def _f")
    ]
    assert places == sorted(places)
    assert "= C =" not in text


def runs(sources: dict[str, str], *modules: str) -> Any:
    """What the joined text's entry returns."""
    names: dict[str, Any] = {"__name__": "student"}
    exec(compile(joined(sources, *modules), "joined.py", "exec", dont_inherit=True), names)
    return names["main"]()


def test_what_runs_as_the_file_is_loaded_comes_first() -> None:
    """Bases, decorators, defaults, constants by calls and aliases, each of a later module."""
    sources = {
        "a": """
            from .b import Base, LIMIT, Later, decorated, made
            TABLE = made(3)
            class Child(Base):
                size = LIMIT
                def get(self, n: int = LIMIT) -> Other:
                    return Other(n)
            @decorated
            def main():
                return Child().get().n, TABLE, Child.size, call(), main.kind
            call = Later.run
            class Other:
                def __init__(self, n):
                    self.n = n
        """,
        "b": """
            def made(n):
                return [helper(i) for i in range(n)]
            def helper(i):
                return i + LIMIT
            def decorated(f):
                f.kind = KIND
                return f
            LIMIT = 5
            KIND = "decorated"
            class Base: ...
            class Later:
                run = staticmethod(lambda: "ran")
        """,
    }
    assert runs(sources, "a", "b") == (5, [5, 6, 7], 5, "ran", "decorated")
    text = joined(sources, "a", "b")
    order = ("def _helper", "_TABLE =", "class _Base", "class _Child", "class _Later", "_call =")
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "# B" not in text  # all of it was needed earlier


def test_annotations_of_what_comes_later_are_strings_but_for_fields() -> None:
    sources = {
        "a": """
            from dataclasses import dataclass
            from typing import NamedTuple
            from .b import Part
            class Pair(NamedTuple):
                part: Part
            @dataclass(frozen=True)
            class Whole:
                part: Part
                def other(self, later: Later) -> list[Whole | int]:
                    x: Later = later
                    return [self, x]
            class Plain:
                part: dict[str, Later]
            class Later: ...
            def main() -> Later:
                return Whole(Part()).other(Later()), Pair(Part()), Plain
        """,
        "b": "class Part: ...\n",
    }
    text = joined(sources, "a", "b")
    assert text.index("class _Part") < text.index("class _Pair")
    assert text.count("    part: _Part\n") == 2
    assert 'def other(self, later: "_Later") -> "list[_Whole | int]":' in text
    assert "        x: _Later = later" in text
    assert '    part: "dict[str, _Later]"' in text
    assert "def main() -> _Later:" in text
    assert len(runs(sources, "a", "b")) == 3


NAMES = {
    "a": """
        import copy
        import math
        import torch.nn.functional as F
        from functools import cache as kept
        from torch import Tensor, nn

        from .b import make as build

        scale = 2


        class Box(nn.Module):
            size = scale
            def __init__(self, scale: int) -> None:
                self.scale = scale * math.pi
                self.name = "scale"
            def grown(self) -> Tensor:
                return F.relu(nn.Parameter(self.scale * scale))  # by `scale`, not math


        @kept
        def main():
            '''See `Box`, `F.relu`, `math` and ``scale``; `finetune.b.make` makes.

            Raises:
                MyError: `finetune.b` and `finetune.c.thing` say when.
            '''
            box = Box(scale=scale)
            inner = [scale for scale in (1, 2)] + [f"{scale:g} {box.scale} scale"]
            def local(math):  # type: ignore[no-untyped-def]
                return math, (lambda scale: scale), copy
            return build(box), local, inner, MyError


        class MyError(Exception): ...


        def copying(): ...
    """,
    "b": "def make(box):\n    return _copy(box)\n\n\ndef _copy(x):\n    return x\n",
}


def test_names_are_changed_where_they_mean_the_modules_alone() -> None:
    text = """
        import copy as _copy_module
        import math as _math
        from functools import cache as _cache

        import torch.nn.functional as _F
        from torch import Tensor as _Tensor
        from torch import nn as _nn

        RULE A


        _scale = 2


        class _Box(_nn.Module):
            size = _scale
            def __init__(self, scale: int) -> None:
                self.scale = scale * _math.pi
                self.name = "scale"
            def grown(self) -> _Tensor:
                return _F.relu(_nn.Parameter(self.scale * _scale))  # NOTE


        @_cache
        def main():
            '''See `_Box`, `_F.relu`, `_math` and ``scale``; `_make` makes.

            Raises:
                _MyError: the section "B" and the project's `thing` say when.
            '''
            box = _Box(scale=_scale)
            inner = [scale for scale in (1, 2)] + [f"{_scale:g} {box.scale} scale"]
            def local(math):
                return math, (lambda scale: scale), _copy_module
            return _make(box), local, inner, _MyError


        class _MyError(Exception): ...


        RULE B


        def _make(box):
            return _copy(box)


        def _copy(x):
            return x
    """
    expected = with_headings(source(text)).replace("NOTE", "by `_scale`, not math")
    assert joined(NAMES) == expected


def test_parameters_that_nothing_reads_go_with_their_arguments() -> None:
    sources = {
        "a": """
            from .b import C, f, g, h
            def main(unused=1):
                return f(1, 2, z=3), g(len([])), C(1, side=2), map(h, [1])
        """,
        "b": """
            def f(x, y, z=0):
                return y
            def g(x):
                return 0
            def h(x):
                return 0
            class C:
                def __init__(self, size, side):
                    self.size = size
                def other(self): ...
        """,
    }
    text = joined(sources)
    assert "return _f(2), _g(len([])), _C(1), map(_h, [1])" in text
    assert "def _f(y):" in text and "def _g(x):" in text and "def _h(x):" in text
    assert "def __init__(self, size):" in text and "def main(unused=1):" in text


def test_the_same_import_in_two_modules_and_a_clash_of_what_is_dropped_are_fine() -> None:
    a = "from .b import f\nimport math\nX = 1\ndef main():\n    return f(math)\n"
    b = "import math\nX = 2\ndef f(x):\n    return math, x\n"
    text = joined({"a": a, "b": b})
    assert text.count("import math") == 1
    assert "X" not in text
