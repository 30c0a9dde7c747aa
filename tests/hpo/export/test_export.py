"""The command, and that its proof can fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

import optuna
import pytest
import torch

from finetune.adapt import adapt
from finetune.challenge import load_submission
from finetune.data.runes import NEW_LABEL, RuneSource
from finetune.recipe import Recipe
from finetune.scoring.estimators import NoiseTable, estimate
from finetune.submission import proof
from finetune.submission.bundle import bundle
from finetune.submission.proof import (
    Claim,
    ProofError,
    check_call,
    check_imports,
    check_same_source,
    describe,
)
from finetune.submission.sandbox import _count_steps
from hpo.errors import UserError
from hpo.export import __main__ as export_module
from hpo.export.__main__ import main
from hpo.export.selection import choose
from hpo.problem.instances import RuneInstance, load_instances, unseen_runes
from hpo.problem.recipe_method import RecipeMethod
from hpo.storage.open import open_storage
from hpo.storage.rdb import StudyStorage
from hpo.study.config import load_study_file
from hpo.study.confirmation import CONFIRMED_KEY
from hpo.study.manifest import MANIFEST_KEY
from tests.hpo.configs import make_config
from tests.hpo.stored import make_confirmation
from tests.settings import torch_threads

if TYPE_CHECKING:
    from tests.conftest import Forked, Nurse, Nursery

ROOT = Path(__file__).parents[3]
STUDY = """
name = "tiny"
artifacts = "none"
storage = "sqlite:///tiny.db"
[instances]
source = "drawn"
runes = ["thorn"]
[estimator]
strata = 2
replicates = 2
[fixed]
steps = 3
batch_size = 2
render = "direct"
precision = "fp32"
[[start]]
lr = 2e-3
[space.lr]
type = "float"
low = 1e-4
high = 1e-2
log = true
"""
RECIPE = Recipe(steps=3, batch_size=2, render="direct", precision="fp32", lr=2e-3)
TABLE = NoiseTable(10, 2, 2, 0)
BEGIN = "    start = _time.perf_counter()\n"  # of a call, in the file
METHOD = RecipeMethod()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RUNES_STORAGE", raising=False)
    with torch_threads(1):
        yield


@pytest.fixture(autouse=True)
def clean_interpreters(monkeypatch: pytest.MonkeyPatch, nurse: Nurse, drawn_once: None) -> None:
    """Those of proofs in this process come from a nursery that has imported torch alone.

    Proofs in other processes, as that of the command below, start theirs from nothing.
    """

    def start(
        command: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        stdout: IO[bytes],
        stderr: IO[bytes],
    ) -> Forked:
        python, *options = command[:3]
        assert (python, options) == (sys.executable, ["-I", "-B"])
        nursery = nurse(("torch",), options=tuple(options))
        return nursery.start(command[3:], cwd, env, Path(stdout.name), Path(stderr.name))

    monkeypatch.setattr("finetune.submission.proof.subprocess", SimpleNamespace(Popen=start))
    monkeypatch.setattr("finetune.submission.proof._POLL_S", 0.02)


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def command(worker_nursery: Nursery) -> Command:
    """Runs a command as a process in a directory."""

    def command(directory: Path, module: str, *arguments: str) -> Any:
        return worker_nursery.run(["-m", module, *arguments], directory, os.environ)

    return command


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """A study with one trial, as a worker leaves it."""
    directory = tmp_path_factory.mktemp("searched")
    (directory / "tiny.toml").write_text(STUDY)
    arguments = ["--study", "tiny.toml", "--trials", "1", "--threads", "1", "--device", "cpu"]
    done = command(directory, "hpo.worker", *arguments)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def study(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    return main(["--study", "tiny.toml", "--threads", "1", "--device", "cpu", *arguments])


def opened() -> tuple[StudyStorage, optuna.Study]:
    storage = open_storage("sqlite:///tiny.db")
    return storage, optuna.load_study(study_name="tiny", storage=storage)


# The command


def test_a_trial_is_exported_and_proved(study: Path, command: Command) -> None:
    options = ["--study", "tiny.toml", "--threads", "1", "--device", "cpu"]
    options += ["--held-out", "1", "--t-samples", "2"]
    done = command(study, "hpo.export", *options, "--out", "submission/finetune.py")
    assert done.returncode == 0, done.stderr
    assert "the same weights, bit for bit" in done.stdout
    assert "thorn/0: loss " in done.stdout
    assert "the trial's, bit for bit" in done.stdout
    assert "challenge: loss " in done.stdout
    assert "no points: " in done.stdout, "its runes are drawn"
    assert "on 1 held-out rune" in done.stdout
    assert "Traceback" not in done.stderr
    (written,) = (study / "submission").iterdir()
    text = written.read_text()
    (trial,) = opened()[1].trials
    error = trial.user_attrs["standard_error"]
    head = " ".join(text.partition("import")[0].split())
    assert (
        f"From trial 0 of study tiny: loss {trial.value:.4f} ± {error:.4f}, the mean of 1" in head
    )
    assert f"digest is {RECIPE.digest}" in head
    assert "python -m hpo.export --study tiny --trial 0 --out finetune.py" in head
    assert callable(load_submission(written))


def test_a_failing_proof_leaves_nothing_new_behind(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tampered(recipe: Recipe, about: str) -> str:
        return bundle(recipe, about).replace("0.5 * (1 + _math.cos", "0.4 * (1 + _math.cos")

    monkeypatch.setattr("finetune.submission.bundle.bundle", tampered)
    assert run("--out", "out/f.py", "--no-challenge") == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("failed: after 3 steps the file's weights are not those of the")
    assert message.endswith("out/f.py is not written")
    assert {p.name.partition("-")[0] for p in study.iterdir()} == {"tiny.db", "tiny.toml"}

    (study / "f.py").write_text("mine")
    assert run("--out", "f.py", "--no-challenge", "--force") == 1
    assert (study / "f.py").read_text() == "mine"


def test_a_recipe_in_a_file_needs_no_trial(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--format", "json") == 0
    assert Recipe.from_json(capsys.readouterr().out) == RECIPE
    assert run("--format", "json", "--out", "recipe.json") == 0
    assert Recipe.from_json((study / "recipe.json").read_text()) == RECIPE
    (study / "tiny.db").unlink()
    assert run("--recipe", "recipe.json", "--out", "f.py", "--no-challenge") == 0
    assert "no trial to compare with" in capsys.readouterr().out
    assert "From the recipe recipe.json, of no trial" in (study / "f.py").read_text()


def test_other_code_is_refused_except_for_the_recipe(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, loaded = opened()
    manifest = loaded.user_attrs[MANIFEST_KEY]
    storage.set_study_user_attr(loaded._study_id, MANIFEST_KEY, {**manifest, "code": "0" * 12})
    with pytest.raises(UserError, match=r"measured with other code .*--format json .*--recipe"):
        run("--out", "f.py")
    assert not (study / "f.py").exists()
    assert run("--format", "json") == 0
    storage.set_study_user_attr(loaded._study_id, MANIFEST_KEY, {**manifest, "data": "other"})
    with pytest.raises(UserError, match="made with other data"):
        run("--out", "f.py")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out is missing; write the file's name"),
        (["--out", "f.txt"], "--out is f.txt; write a name that ends in .py"),
        (["--out", "there.py"], "there.py is there already; write --force"),
        (["--out", "f.py", "--trial", "7"], "study tiny has no trial 7; its last is 0"),
        (["--out", "f.py", "--trial", "-1"], "--trial is -1; write 0 or more"),
        (["--out", "f.py", "--held-out", "0"], "--held-out is 0; write 1 or more"),
        (["--out", "f.py", "--recipe", "none.json"], "none.json can't be read: No such file"),
        (["--out", "f.py", "--recipe", "bad.json"], "bad.json: unknown recipe field 'lrr'"),
        (["--out", "f.py", "--storage", "sqlite:///no.db"], "no such database; start a worker"),
        (["--out", "f.py", "--device", "gpu"], "--device is 'gpu'; write cpu, cuda or cuda:N"),
    ],
)
def test_bad_input_is_one_line(study: Path, arguments: list[str], message: str) -> None:
    (study / "there.py").touch()
    (study / "bad.json").write_text('{"lrr": 1}')
    with pytest.raises(UserError) as caught:
        main(["--study", "tiny.toml", *arguments])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (study / "f.py").exists()


def test_help_and_json_need_no_torch(study: Path) -> None:
    code = (
        "import sys; from hpo.export.__main__ import main; "
        "main(['--study', 'tiny.toml', '--format', 'json']); sys.exit('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == 0


# Which trial


def test_the_confirmed_trial_comes_before_the_best(study: Path) -> None:
    storage, loaded = opened()
    assert choose(loaded, None, METHOD).name == "trial 0 of study tiny"
    assert choose(loaded, None, METHOD).recipe == RECIPE.to_dict()
    other = loaded.trials[0]
    other.number, other.value = 1, 9.0
    loaded.add_trial(other)
    assert choose(loaded, None, METHOD).name == "trial 0 of study tiny"
    confirmed = make_confirmation(trial=1, loss=0.25).to_json()
    storage.set_study_user_attr(loaded._study_id, CONFIRMED_KEY, confirmed)
    chosen = choose(opened()[1], None, METHOD)
    assert (chosen.name, chosen.loss, chosen.confirmed) == ("trial 1 of study tiny", 0.25, True)
    assert not choose(opened()[1], 0, METHOD).confirmed


def test_a_confirmation_that_cannot_be_read_is_told_and_trials_can_be_named(study: Path) -> None:
    storage, loaded = opened()
    for odd in ("x", {"loss": "low"}, {"trial": 0, "loss": 0.1}):
        storage.set_study_user_attr(loaded._study_id, CONFIRMED_KEY, odd)
        with pytest.raises(UserError, match=r"confirm again by .*, or name a trial by --trial$"):
            choose(opened()[1], None, METHOD)
        assert choose(opened()[1], 0, METHOD).name == "trial 0 of study tiny"
    old = make_confirmation(trial=None, recipe={"colour": "red"}).to_json()
    storage.set_study_user_attr(loaded._study_id, CONFIRMED_KEY, old)
    with pytest.raises(UserError, match="confirmed has a recipe of another version"):
        choose(opened()[1], None, METHOD)


def test_a_trial_that_measured_nothing_is_refused(study: Path) -> None:
    _, loaded = opened()
    loaded.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    with pytest.raises(UserError, match="trial 1 has measured nothing"):
        choose(loaded, 1, METHOD)


def test_held_out_runes_are_those_that_no_trial_saw(study: Path, drawn: RuneSource) -> None:
    source = drawn
    asked = load_study_file("tiny.toml").instances
    runes = unseen_runes(asked, source, 1000)
    assert sorted([*runes, "thorn"]) == sorted(source.runes)
    assert len(unseen_runes(asked, source, 3)) == len(set(unseen_runes(asked, source, 3))) == 3
    assert unseen_runes(asked.model_copy(update={"runes": ()}), source, 5) == []


# The proof


@pytest.fixture(scope="module")
def instance(drawn: RuneSource) -> RuneInstance:
    config = make_config(instances={"source": "drawn", "runes": ["thorn"]})
    return load_instances(config.instances, drawn)[0]


def written(directory: Path, text: str) -> Path:
    path = directory / "submission.py"
    path.write_text(text)
    return path


def tampered(old: str, new: str) -> str:
    text = bundle(RECIPE, "About.")
    assert old in text
    return text.replace(old, new)


@pytest.fixture(scope="module")
def ran_by_modules() -> list[Any]:
    return []


@pytest.fixture
def modules_run_once(ran_by_modules: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the modules give for `RECIPE` is the same for all files that are compared with it."""
    run = proof._run

    def once(submission: Path | None, *arguments: Any) -> Any:
        if submission is not None:
            return run(submission, *arguments)
        if not ran_by_modules:
            ran_by_modules.append(run(None, *arguments))
        return ran_by_modules[0]

    monkeypatch.setattr(proof, "_run", once)


def test_the_call_agrees_with_the_trial_or_does_not(tmp_path: Path, instance: RuneInstance) -> None:
    path = written(tmp_path, bundle(RECIPE, "About."))
    adapted = adapt(instance.pretrained, instance.split.train, RECIPE)
    loss = estimate(adapted.model, instance.split.test, NEW_LABEL, TABLE)
    claim = Claim(loss.mean, loss.standard_error, 3)
    proof = check_call(path, RECIPE, instance, TABLE, 100.0, claim)
    assert proof.exact and proof.steps == 3
    assert "bit for bit" in describe(proof, claim, RECIPE, "thorn/0")[0]
    assert "3 steps; " in describe(proof, claim, RECIPE, "thorn/0")[0]

    near = replace(claim, loss=loss.mean * (1 + 1e-6), steps=2)
    proof = check_call(path, RECIPE, instance, TABLE, 100.0, near)
    assert not proof.exact
    lines = describe(proof, near, RECIPE, "thorn/0")
    assert "the same within their errors" in lines[0]
    assert "the clock cut a schedule of 3 steps (to 2 in the trial, 3 here)" in lines[1]

    far = replace(claim, loss=loss.mean + 10 * loss.standard_error)
    with pytest.raises(ProofError, match=r"loss on thorn/0 is .* apart"):
        check_call(path, RECIPE, instance, TABLE, 100.0, far)


def test_a_planned_schedule_is_proved_bit_for_bit(tmp_path: Path, instance: RuneInstance) -> None:
    """A reference clock gave the trial fewer steps than its recipe asks for; the proof, too."""
    recipe = replace(RECIPE, steps=900)
    path = written(tmp_path, bundle(recipe, "About."))
    (called,) = METHOD.call(recipe.to_dict(), [instance], lambda *_: None, [4])
    loss = estimate(called.model, instance.split.test, NEW_LABEL, TABLE)
    claim = Claim(loss.mean, loss.standard_error, called.steps)
    proof = check_call(path, recipe, instance, TABLE, 100.0, claim, called.steps)
    assert proof.exact and proof.steps == called.steps == 4
    (line,) = describe(proof, claim, recipe, "thorn/0", planned=True)
    assert "4 steps by the study's reference clock; the trial's, bit for bit" in line


def test_steps_are_those_of_one_of_several_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks: list[Any] = []
    optimizers = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(optimizers, "register_optimizer_step_post_hook", hooks.append)
    steps = _count_steps()
    assert steps() == 0
    weight = torch.nn.Parameter(torch.zeros(1))
    one, other = torch.optim.AdamW([weight]), torch.optim.AdamW([weight])
    for optimizer in (one, other, other, one, one, torch.optim.SGD([weight])):
        hooks[0](optimizer, (), {})
    assert steps() == 3


def test_the_instances_seed_is_the_calls(tmp_path: Path, instance: RuneInstance) -> None:
    path = written(tmp_path, bundle(RECIPE, "About."))
    seeded = replace(instance, seed=5)
    adapted = adapt(instance.pretrained, instance.split.train, replace(RECIPE, seed=5))
    loss = estimate(adapted.model, instance.split.test, NEW_LABEL, TABLE)
    claim = Claim(loss.mean, loss.standard_error, 3)
    assert check_call(path, RECIPE, seeded, TABLE, 100.0, claim).exact


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "lr: float = 0.002",
            "lr: float = 0.003",
            "the file's lr is 0.003, and the recipe's 0.002",
        ),
        (
            "lr = self.recipe.lr * ",
            "lr = 1.1 * self.recipe.lr * ",
            "weights are not those of the modules",
        ),
        (
            "velocity = torch.where(",
            "velocity = 1.001 * torch.where(",
            "has the weights of its modules' but answers otherwise",
        ),
        (
            BEGIN,
            f"    print(1)\n{BEGIN}",
            "printed '1'",
        ),
        (
            BEGIN,
            f"    try:\n        open('x', 'w')\n    except Exception:\n        pass\n{BEGIN}",
            "did what a submission must not do: open x",
        ),
        (
            BEGIN,
            f"    __import__('socket').create_connection(('127.0.0.1', 9))\n{BEGIN}",
            "failed in a clean interpreter: PermissionError: socket",
        ),
        (
            BEGIN,
            f"    __import__('importlib').import_module('finetune.recipe')\n{BEGIN}",
            "failed in a clean interpreter: ImportError: finetune is not torch",
        ),
    ],
    ids=["value", "arithmetic", "answers", "print", "write", "network", "import"],
)
def test_a_file_that_was_tampered_with_fails(
    tmp_path: Path,
    instance: RuneInstance,
    modules_run_once: None,
    old: str,
    new: str,
    message: str,
) -> None:
    path = written(tmp_path, tampered(old, new))
    with pytest.raises(ProofError) as caught:
        check_same_source(path, RECIPE, instance)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_foreign_import_fails_without_a_run(tmp_path: Path) -> None:
    check_imports(written(tmp_path, bundle(RECIPE, "About.")))
    with pytest.raises(ProofError, match=r"the file imports finetune, numpy$"):
        check_imports(written(tmp_path, "import numpy, torch, os\nfrom finetune import adapt\n"))
    with pytest.raises(ProofError, match="the file is not Python"):
        check_imports(written(tmp_path, "def\n"))


def test_a_call_that_hangs_or_is_too_long_fails(tmp_path: Path, instance: RuneInstance) -> None:
    sleeping = tampered(BEGIN, f"{BEGIN}    _time.sleep(1)\n")
    with pytest.raises(ProofError, match=r"the call took \d\.\d s; the limit is 0.5 s"):
        check_call(written(tmp_path, sleeping), RECIPE, instance, TABLE, 0.5)


def test_a_loss_that_is_no_number_fails(tmp_path: Path, instance: RuneInstance) -> None:
    broken = tampered(
        "return _on_gpu_or_cpu(network, train)",
        "return _on_gpu_or_cpu(network, train).fill()",
    )
    broken += (
        "\n\ndef fill(model):\n"
        "    torch.nn.init.constant_(model.head.direct.bias, float('nan'))\n"
        "    return model\n\n\ntorch.nn.Module.fill = fill\n"
    )
    with pytest.raises(ProofError, match="the loss on thorn/0 is nan"):
        check_call(written(tmp_path, broken), RECIPE, instance, TABLE, 100.0)


def test_json_has_every_field(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--format", "json", "--trial", "0") == 0
    assert json.loads(capsys.readouterr().out) == RECIPE.to_dict()
    assert export_module.EXIT_FAILED == 1
