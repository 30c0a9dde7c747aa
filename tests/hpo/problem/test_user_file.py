"""A person's file: which of its values are parameters, and how others take their place."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import UserError
from hpo.problem.base import InvalidValuesError, ProofError
from hpo.problem.file_method import FileMethod
from hpo.problem.user_file.parameters import Style, UserFile, parse_user_file
from hpo.problem.user_file.proof import prove_text

PATH = Path("mine.py")
KEYWORDS = """\
LR = 0.5
def finetune_model(net, data, lr=5e-5, *, steps: int = 100,  # of AdamW
                   decay: float = 0,  # pull to zero
                   mode="cosine", fast=True, layers=(1, 2), limit=None, shift=-0.5, report=None):
    return net
"""
DATACLASS = """\
import dataclasses
from typing import ClassVar, Literal
@dataclasses.dataclass(frozen=True)
class Settings:
    lr: float = 1e-3  # rate
    rank: int = dataclasses.field(default=4)
    kind: Literal["pen", "direct"] = "pen"
    KNOWN: ClassVar[int] = 3
    names: list = dataclasses.field(default_factory=list)
DEFAULT = Settings()
def finetune_model(net, data, settings=DEFAULT):
    return net
"""
CONSTANTS = """\
LR: float = 1  # rate
STEPS = 20
TWICE = 1
TWICE = 2
_HIDDEN = 3
lower = 4
A, B = 1, 2
HALF = STEPS / 2
def finetune_model(net, data):
    return net
"""


def read(text: str, style: Style | None = None) -> UserFile:
    return parse_user_file(PATH, text, style)


def defaults(file: UserFile) -> dict[str, Any]:
    return {name: p.field.default for name, p in file.parameters.items()}


def test_keyword_arguments_are_parameters() -> None:
    file = read(KEYWORDS)
    assert file.style == "keywords"
    assert defaults(file) == {
        "lr": 5e-5,
        "steps": 100,
        "decay": 0.0,
        "mode": "cosine",
        "fast": True,
        "shift": -0.5,
    }
    kinds = [p.field.kind for p in file.parameters.values()]
    assert kinds == ["float", "int", "float", "text", "bool", "float"]
    assert file.parameters["steps"].field.meaning == "of AdamW"
    assert file.parameters["lr"].field.meaning == "", "the comment is of the last value"
    assert file.parameters["decay"].field.meaning == "pull to zero"
    assert file.others == {"constants": ("LR",)}
    assert file.reports


def test_fields_of_a_dataclass_are_parameters() -> None:
    file = read(DATACLASS)
    assert file.style == "dataclass"
    assert defaults(file) == {"lr": 1e-3, "rank": 4, "kind": "pen"}
    assert file.parameters["kind"].field.choices == ("pen", "direct")
    direct = read(DATACLASS.replace("settings=DEFAULT", "settings=Settings()"))
    assert defaults(direct) == defaults(file)
    assert not file.reports


def test_constants_are_parameters() -> None:
    file = read(CONSTANTS)
    assert file.style == "constants"
    assert defaults(file) == {"LR": 1.0, "STEPS": 20}
    assert defaults(read(KEYWORDS, "constants")) == {"LR": 0.5}


@pytest.mark.parametrize(
    ("text", "style", "message"),
    [
        ("x = (\n", None, "mine.py line 1 is not Python: '(' was never closed"),
        ("a = 1\x00", None, "mine.py is not Python: "),
        ("X = 1\n", None, "mine.py defines no finetune_model; write def finetune_model(pretrained"),
        ("def finetune_model(a, b, c): 0", None, "line 1: finetune_model needs c; give a default"),
        ("def finetune_model(a, b, *, c): 0", None, "finetune_model needs c; give a default"),
        ("def finetune_model(a): 0", None, "takes 1 arguments; write def finetune_model(pretr"),
        ("def finetune_model(a, b): 0", None, "mine.py has no parameters; give finetune_model key"),
        (CONSTANTS, "keywords", 'no parameters of the kind "keywords"; it has constants: LR, STE'),
    ],
)
def test_what_can_not_be_tuned_is_one_line(text: str, style: Style | None, message: str) -> None:
    with pytest.raises(UserError) as error:
        FileMethod(PATH, text, style)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_values_are_of_the_defaults_types() -> None:
    method = FileMethod(PATH, KEYWORDS)
    assert method.complete({"decay": 1}) == {**defaults(method.file), "decay": 1.0}
    wrong = [
        ({"lrr": 1.0}, "mine.py has no parameter 'lrr'; it has lr, steps, decay, mode, fast, shi"),
        ({"steps": 1.5}, "steps is 1.5; write a whole number"),
        ({"mode": 3}, "mode is 3; write a string"),
        ({"fast": 1}, "fast is 1; write true or false"),
        ({"lr": True}, "lr is True; write a number"),
    ]
    for values, message in wrong:
        with pytest.raises(InvalidValuesError) as error:
            method.complete(values)
        assert message in str(error.value)


def test_other_values_change_their_places_alone() -> None:
    text = "\ufeff# Größe → ∞\r\n" + KEYWORDS.replace("\n", "\r\n")
    changed = read(text).with_values(
        {"lr": 3.25e-4, "steps": 7, "mode": 'it\'s "x"', "shift": 0.25}
    )
    assert changed == (
        text.replace("5e-5", "0.000325")
        .replace("= 100", "= 7")
        .replace('mode="cosine"', "mode='it\\'s \"x\"'")
        .replace("-0.5", "0.25")
    )
    assert read(text).with_values(defaults(read(text))) == text, "as its author wrote it"
    dataclass = read(DATACLASS).with_values({"rank": 8, "kind": "direct"})
    assert dataclass == DATACLASS.replace("default=4", "default=8").replace('= "pen"', '= "direct"')
    assert "STEPS = 9\n" in read(CONSTANTS).with_values({"STEPS": 9})


values = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.floats(allow_nan=False, allow_infinity=False),
        "steps": st.integers(-(10**9), 10**9),
        "decay": st.floats(allow_nan=False, allow_infinity=False),
        "mode": st.text(),
        "fast": st.booleans(),
        "shift": st.floats(-1, 1),
    },
)


@given(values)
def test_any_values_are_read_back_and_proved(values: dict[str, Any]) -> None:
    file, method = read(KEYWORDS), FileMethod(PATH, KEYWORDS)
    whole = method.complete(values)
    text = method.export(whole, "about")
    ast.parse(text)
    assert defaults(read(text)) == whole
    changed = sum(whole[name] != default for name, default in defaults(file).items())
    line = prove_text(file, text, whole)
    assert line.startswith(f"{changed} value" if changed else "the same text as mine.py")


def test_a_text_that_differs_elsewhere_is_not_proved() -> None:
    file = read(KEYWORDS)
    text = file.with_values({"lr": 1.0})
    whole = {**defaults(file), "lr": 1.0}
    for other, message in [
        (text.replace("return net", "return None"), "by more than values"),
        (text.replace("# of AdamW", "# of Adam"), "by more than values"),
        (text.replace("lr=1.0", "lr=2.0"), "the file's lr is 2.0, and the trial's 1.0"),
    ]:
        with pytest.raises(ProofError, match=message):
            prove_text(file, other, whole)
