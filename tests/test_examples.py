"""The examples are files that can be tuned, and what studies say of them holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.data.runes import RuneSource
from finetune.model.checkpoints import list_networks, load_network
from hpo.problem.file_method import FileMethod
from hpo.problem.instances import RuneInstance
from hpo.problem.measure import measure
from hpo.problem.runes import RuneProblem
from hpo.problem.settings import Confirm, Estimator, Instances
from hpo.study.config import load_study_file
from hpo.study.first_file import write_first_study

ROOT = Path(__file__).parents[1]
# By name: the style, a parameter that makes a call short, and the steps that it then makes.
EXAMPLES = {
    "plain": ("keywords", "epochs", 2),
    "lora": ("constants", "STEPS", 1),
    "augmented": ("dataclass", "n_steps", 1),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_read_searched_and_called(
    name: str, drawn: RuneSource, tmp_path: Path
) -> None:
    style, short, steps = EXAMPLES[name]
    path = ROOT / "examples" / f"{name}.py"
    text = path.read_text()
    assert 40 <= len(text.splitlines()) <= 120
    method = FileMethod(path, text)
    assert method.file.style == style
    assert all(field.meaning for n, field in method.fields.items() if n != "TIME_LIMIT_S")

    write_first_study(path, tmp_path / "first.toml", {})
    space = load_study_file(str(tmp_path / "first.toml")).space
    assert set(space) == set(method.fields) - {"TIME_LIMIT_S"}

    network = load_network(list_networks()[0])
    instance = RuneInstance("thorn", 0, "unet_1", 0, network, drawn.split("thorn", "bilinear", 0))
    problem = RuneProblem(Instances(source="drawn"), Estimator(strata=2, replicates=2), Confirm())
    values = method.complete({short: 1})
    (measured,) = measure(method, problem, values, [instance], 60.0, lambda *_: None)
    assert measured.steps == steps
    assert 0.05 < measured.evaluation.loss < 1.0


def test_the_studies_of_the_examples_are_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("plain", "plain-quickstart"):
        config = load_study_file(name)
        own = config.load_method().complete({})
        # Its author's values are the first trial, but for what is fixed.
        assert dict(config.start[0]) == {n: own[n] for n in config.space}
