"""From a person's file to a study file that is ready to run."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpo.errors import UserError
from hpo.init import main
from hpo.problem.user_file.parameters import parse_user_file
from hpo.study.config import StudyConfig, load_study_file
from hpo.study.first_file import first_study

FILE = """\
def finetune_model(
    pretrained_model,
    train_dataset,
    lr=5e-5,  # of AdamW
    weight_decay=0.0,
    beta2=0.99,
    n_steps=300,
    rank=8,
    dropout=0.1,
    rotation_deg=0.0,
    logit_mean=-0.5,
    schedule="cosine",
    ema=False,
    seed=0,
):
    return pretrained_model
"""


@pytest.fixture
def written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The study file of `FILE`."""
    file, out = tmp_path / "mine.py", tmp_path / "studies" / "mine.toml"
    file.write_text(FILE)
    assert main(["--method", str(file), "--out", str(out)]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"wrote {out}: 11 parameters of {file} (keywords: lr, weight_decay, ")
    assert line.endswith(f"python -m hpo.worker --study {out}\n")
    return out


def test_every_parameter_has_a_range_around_its_default(written: Path) -> None:
    config = load_study_file(str(written))
    assert config.name == "mine"
    assert config.method.steps == "n_steps"
    space = {name: p.model_dump(exclude={"when"}) for name, p in config.space.items()}
    assert space == {
        "lr": {"type": "float", "low": 5e-6, "high": 5e-4, "log": True},
        "weight_decay": {"type": "float", "low": 0.0, "high": 0.1, "log": False},
        "beta2": {"type": "float", "low": 0.95, "high": 0.998, "log": False},
        "n_steps": {"type": "int", "low": 75, "high": 600, "log": True},
        "rank": {"type": "int", "low": 2, "high": 32, "log": True},
        "dropout": {"type": "float", "low": 0.0, "high": 0.3, "log": False},
        "rotation_deg": {"type": "float", "low": 0.0, "high": 15.0, "log": False},
        "logit_mean": {"type": "float", "low": -1.0, "high": 0.0, "log": False},
        "schedule": {"type": "choice", "choices": ["cosine"]},
        "ema": {"type": "choice", "choices": [False, True]},
    }
    assert config.start[0]["lr"] == 5e-5, "its author's values come first"
    text = written.read_text()
    assert "[space.lr]  # of AdamW\n" in text
    assert "# Not sampled: seed = 0.\n" in text


def test_a_file_that_is_there_stays(written: Path, tmp_path: Path) -> None:
    before = written.read_text()
    for arguments, message in [
        (["--method", str(tmp_path / "mine.py"), "--out", str(written)], "is there already"),
        (["--method", str(tmp_path / "mine.py")], "--out is missing; write the study file's name"),
        (["--method", "none.py", "--out", str(tmp_path / "x.toml")], "none.py: no such file"),
        (["--method", str(written), "--out", str(tmp_path / "x")], "write a name that ends in .to"),
        ([], "--study is missing; write a name in studies/"),
    ]:
        with pytest.raises(UserError) as error:
            main(arguments)
        assert message in str(error.value)
    assert written.read_text() == before


def test_drawings_of_ones_own_are_named(tmp_path: Path) -> None:
    file, out = tmp_path / "mine.py", tmp_path / "mine.toml"
    file.write_text(FILE)
    main(["--method", str(file), "--out", str(out), "--drawings", "runes", "--train", "8"])
    instances = load_study_file(str(out)).instances
    assert (instances.source, instances.drawings, instances.train) == ("drawings", Path("runes"), 8)


DEFAULTS = st.one_of(
    st.booleans(),
    st.text(st.characters(codec="utf-8"), max_size=9),
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e30, max_value=1e30),
)
NAMES = st.sampled_from(
    ["lr", "WEIGHT_DECAY", "dropoutRate", "epochs", "größe", "beta", "shift_px"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.dictionaries(NAMES, DEFAULTS, min_size=1))
def test_any_file_gives_a_good_study_file(tmp_path: Path, defaults: dict[str, Any]) -> None:
    path = tmp_path / "mine.py"
    arguments = ", ".join(f"{name}={value!r}" for name, value in defaults.items())
    path.write_text(f"def finetune_model(net, data, {arguments}):\n    return net\n", "utf-8")
    file = parse_user_file(path, path.read_text("utf-8"))
    config = StudyConfig.model_validate(tomllib.loads(first_study(file, "x", {})))
    assert set(config.space) == set(defaults)
    assert config.start == (defaults,)
