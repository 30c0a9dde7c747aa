"""The file works however a grader or a student loads it, with the same result bit for bit."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.data.runes import resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.recipe import Recipe
from finetune.submission.bundle import bundle
from tests.settings import torch_threads

COURSE = Path(__file__).parent / "assets" / "course.py"
MARKER = "# PASTE HERE\n"
DRAWINGS = resize_bitmaps(draw_rune("is", 4, seed=0), "bilinear")
RECIPE = Recipe(steps=3, batch_size=4, precision="fp32", deadline_s=1000.0)


@functools.cache
def text() -> str:
    return bundle(RECIPE, "About.")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with torch_threads(1):
        yield


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)


Call = Callable[..., nn.Module]
_IMPORTED = "imported_submission"


def imported(directory: Path) -> Call:
    (directory / f"{_IMPORTED}.py").write_text(text())
    sys.path.insert(0, str(directory))
    try:
        call: Call = importlib.import_module(_IMPORTED).finetune_model
    finally:
        sys.path.remove(str(directory))
    return call


def by_path(directory: Path) -> Call:
    """Without an entry in `sys.modules`."""
    path = directory / "handed in.py"
    path.write_text(text())
    spec = importlib.util.spec_from_file_location("student", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "student" not in sys.modules
    call: Call = module.finetune_model
    return call


def executed(names: dict[str, Any], postponed: bool = False) -> Call:
    """By `exec`, whose text may inherit this module's postponed annotations."""
    exec(text() if postponed else compile(text(), "<student>", "exec", dont_inherit=True), names)
    call: Call = names["finetune_model"]
    return call


WAYS: dict[str, Callable[[Path], Call]] = {
    "import": imported,
    "path": by_path,
    "exec as student": lambda _: executed({"__name__": "student"}),
    "exec as student where annotations are postponed": lambda _: executed(
        {"__name__": "student"}, postponed=True
    ),
    "exec in nothing": lambda _: executed({}),
    "notebook cell": lambda _: executed({"__name__": "__main__", "F": 1, "Batch": 2}),
}


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[Callable[[str], Call]]:
    yield lambda way: WAYS[way](tmp_path)
    sys.modules.pop(_IMPORTED, None)


@functools.cache
def expected() -> dict[str, Tensor]:
    from finetune.adapt import finetune_model

    return finetune_model(tiny(), DRAWINGS, RECIPE).state_dict()


@functools.cache
def expected_answer() -> Tensor:
    from finetune.adapt import finetune_model

    return answer(finetune_model(tiny(), DRAWINGS, RECIPE))


def answer(model: nn.Module) -> Tensor:
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(6, 1, 28, 28, generator=numbers)
    t = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.7, 0.95])[:, None, None, None]
    with torch.no_grad():
        out: Tensor = model(x, t, torch.full((6,), 10))
    return out


def check(state: dict[str, Tensor]) -> None:
    assert state.keys() == expected().keys()
    assert all(torch.equal(value, expected()[name]) for name, value in state.items())


@pytest.mark.parametrize("way", WAYS)
def test_each_way_gives_the_same(way: str, loaded: Callable[[str], Call]) -> None:
    model = loaded(way)(tiny(), DRAWINGS)
    check(model.state_dict())
    assert torch.equal(answer(model), expected_answer())


def test_pasted_into_the_courses_script(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = COURSE.read_text().split(MARKER)
    script = before + text() + after
    names: dict[str, Any] = {
        "__name__": "__main__",
        "STATE": tiny().state_dict(),
        "DRAWINGS": DRAWINGS,
    }
    exec(compile(script, "course.py", "exec"), names)
    assert names["kept"]
    flour, *rest = names["meanings"]
    assert flour == 1
    assert rest == [2, "new", "a school subject", 25, ["of a copy"], 96485.3, "For it."]
    assert all(0 < loss < 100 for loss in names["losses"])
    assert type(names["network"].network) is names["ConditionalDiffusionUNet"]
    # The course's class computes what ours does, so a call there is one of the file's elsewhere.
    course = names["pretrained"](tiny().state_dict())
    alone = executed({})(course, DRAWINGS)
    assert names["network"].state_dict().keys() == alone.state_dict().keys()
    for name, value in alone.state_dict().items():
        assert torch.equal(names["network"].state_dict()[name], value), name


def test_the_script_without_it_has_no_name_that_the_file_binds() -> None:
    """Of what is pasted in, only the call has a name without an underscore."""
    names: dict[str, Any] = {}
    exec(text(), names)
    assert {n for n in names if not n.startswith("_")} == {"torch", "finetune_model"}


def test_what_it_returns_can_be_stored_and_loaded(
    loaded: Callable[[str], Call], tmp_path: Path
) -> None:
    model = loaded("import")(tiny(), DRAWINGS)
    said = answer(model)
    assert torch.equal(answer(pickle.loads(pickle.dumps(model))), said)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    assert torch.equal(answer(torch.load(stored, weights_only=False)), said)
    torch.save(model, tmp_path / "model.pt")
    # In a process of its own, which imports the file to read it.
    code = (
        "import torch; model = torch.load('model.pt', weights_only=False); "
        "print(type(model).__module__, len(model.state_dict()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [_IMPORTED, str(len(model.state_dict()))], done.stderr
