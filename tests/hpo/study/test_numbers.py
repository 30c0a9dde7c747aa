"""Mistakes in study files, recipes and options: one line that says what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.arguments import parse
from hpo.dashboard.options import DashboardOptions
from hpo.errors import UserError
from hpo.export.selection import read_recipe
from hpo.study.config import load_study_file
from hpo.worker.options import WorkerOptions
from tests.cheap import CHEAP_TOML, CheapMethod

STUDY = f"""
name = "s"
storage = "sqlite:///s.db"
{CHEAP_TOML}
[instances]
source = "drawn"
[budget]
trials = 30
[space.lr]
type = "float"
low = 1e-4
high = 1e-1
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"drawn"', f'"drawn"\nsplits = [{2**64}]', f"splits.0 is {2**64}; write 4294967295 or"),
        ('"drawn"', f'"drawn"\nseeds = [{2**63}]', f"seeds.0 is {2**63}; write 4294967295 or less"),
        ('"drawn"', '"drawn"\nseeds = [-1]', "seeds.0 is -1; write 0 or more"),
        ('"drawn"', '"drawn"\nrunes = ["a", "b", "a"]', "runes names 'a' twice; write each once"),
        ('"drawn"', '"drawn"\nsplits = [1, 1]', "splits names 1 twice"),
        ('"drawn"', '"x"', "source is 'x'; write 'omniglot', 'drawn' or 'drawings'"),
        ("trials = 30", "trials = 0", "budget.trials is 0; write more than 0"),
        ("trials = 30", "trials = 3.5", "budget.trials is 3.5; write a whole number"),
        ("trials = 30", f"trials = {2**31}", "write 2147483647 or less"),
        ("trials = 30", "seconds = inf", "budget.seconds is inf; write 1000000000 or less"),
        ("trials = 30", "target = nan", "budget.target is nan; write a finite number"),
        ("trials = 30", "[recovery]\npatience_s = 1e300", "patience_s is 1e.300; write 1000000000"),
        ("trials = 30", f"[sampler]\nseed = {2**32}", "seed is 4294967296; write 4294967295 or"),
        (
            "trials = 30",
            "[estimator]\nstrata = 99999999",
            "strata is 99999999; write 10000 or less",
        ),
        ("trials = 30", f"trials = 1{'0' * 5000}", "is not TOML: Exceeds the limit"),
        ("trials = 30", f"trials = {'[' * 100_000}", "has tables in tables without end"),
        (
            "trials = 30",
            f"[fixed]\nsteps = 1{'0' * 400}",
            r"steps is 10{99}\.\.\.; write a value in",
        ),
        ("low = 1e-4", "low = nan", "space.lr.low is nan; write a finite number"),
        ('"float"', '"flot"', 'lr.type is \'flot\'; write "float", "int", "choice" or "switch"'),
        ('type = "float"\n', "", 'space.lr has no type; write type = "float"'),
        (
            "[space.lr]",
            "[space.step]",
            r"space.step is no field of the method; did you mean steps\?",
        ),
    ],
)
def test_a_mistake_in_a_study_file_is_one_line(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    (tmp_path / "s.toml").write_text(STUDY)
    load_study_file(str(tmp_path / "s.toml"))
    (tmp_path / "s.toml").write_text(STUDY.replace(old, new))
    with pytest.raises(UserError, match=told) as error:
        load_study_file(str(tmp_path / "s.toml"))
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)
    assert "Input should" not in str(error.value)


@pytest.mark.parametrize("name", ["x" * 5000, f"{'x' * 5000}.toml", f"/{'x' * 5000}/y"])
def test_a_name_that_is_too_long_is_one_short_line(name: str) -> None:
    with pytest.raises(UserError, match="File name too long; write a name or a path") as error:
        load_study_file(name)
    assert len(str(error.value)) < 250


def test_a_study_file_that_is_none_to_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not TOML"):
        load_study_file(str(tmp_path / "s.toml"))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[]", f'{{"lr": 1{"0" * 5000}}}']
)
def test_a_recipe_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(UserError, match=r"mine.json: .*recipe is") as error:
        read_recipe(tmp_path / "mine.json", CheapMethod())
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seed", "4294967296"], "--seed is 4294967296; write 4294967295 or less"),
        (["--seed", "-1"], "--seed is -1; write 0 or more"),
        (["--trials", "2147483648"], "--trials is 2147483648; write 2147483647 or less"),
        (["--trials", "9" * 400], r"--trials is 9{40}\.\.\.; write 2147483647 or less"),
        (["--trials", "9" * 5000], r"--trials is '9{40}\.\.\.'; write a whole number"),
        (["--seconds", "inf"], "--seconds is inf; write 1000000000 or less"),
        (["--seconds", "nan"], "--seconds is nan; write more than 0"),
    ],
)
def test_numbers_of_options_have_bounds(arguments: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse(WorkerOptions, ["--study", "s", *arguments], "worker", None)


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_is_one(port: str) -> None:
    with pytest.raises(UserError, match=f"--port is {port}; write"):
        parse(DashboardOptions, ["--study", "s", "--port", port], "dashboard", None)
