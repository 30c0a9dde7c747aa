"""What is seen of a trial: a picture of each call, a plot; in the dashboard a note, too."""

from __future__ import annotations

import io
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import FrozenTrial, TrialState
from PIL import Image
from torch import Tensor, nn

from finetune.adapt import AdaptationError, Adapted, Progress
from finetune.data.runes import Split
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.recipe import Recipe
from hpo.artifacts.store import open_store
from hpo.artifacts.trial_plot import plot_trial
from hpo.artifacts.uploads import Gallery
from hpo.dashboard.app import LiveDashboard
from hpo.dashboard.server import Address, guard
from hpo.problem.base import Problem
from hpo.problem.instances import RuneInstance
from hpo.problem.pictures import N_SAMPLES, InstancePictures, draw_samples
from hpo.problem.recipe_method import RecipeMethod
from hpo.problem.runes import RuneProblem
from hpo.report.markdown import section_markdown
from hpo.report.sections.trial import trial_section
from hpo.storage.open import load_study, open_storage
from hpo.study.config import Budget, Recovery, StudyConfig
from hpo.trial.record import Call
from hpo.trial.run import run_of
from hpo.worker.display import Display
from hpo.worker.loop import Loop
from hpo.worker.objective import Objective
from hpo.worker.visuals import Visuals
from tests.hpo.configs import make_config
from tests.hpo.standins import one_by_one

Ask = Callable[..., Any]
Run = Callable[..., list[FrozenTrial]]
HERE = Address("127.0.0.1", "127.0.0.1", 8080, socket.AF_INET)


def network(n_classes: int = 11) -> ConditionalDiffusionUNet:
    torch.manual_seed(0)
    return ConditionalDiffusionUNet(
        base_dim=8, n_classes=n_classes, n_updown_blocks=1, n_middle_blocks=1
    )


def config_in(folder: Path) -> StudyConfig:
    return make_config(
        storage=f"sqlite:///{folder}/s.db",
        limit_s=12.0,
        margin_s=2.0,
        estimator={"strata": 10, "replicates": 2},
        pruner={"name": "none"},
    )


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    return config_in(tmp_path)


@pytest.fixture(scope="module")
def instances() -> list[RuneInstance]:
    white = torch.ones(10, 1, 28, 28)
    pretrained = network(10)
    split = Split(white, white)
    return [RuneInstance(f"r{i}", 0, "unet_1", i, pretrained, split) for i in range(2)]


def problem_of(config: StudyConfig, instances: list[RuneInstance]) -> Problem:
    problem = config.load_problem(None)
    assert isinstance(problem, RuneProblem)
    problem._held_in = instances
    return problem


def run_trials(
    config: StudyConfig,
    instances: list[RuneInstance],
    fake: Callable[[Recipe], float],
    lrs: list[float],
    place: str,
) -> list[FrozenTrial]:
    """Runs a trial of each learning rate; ``fake(recipe)`` gives a call's seconds."""

    def adapt(pretrained: nn.Module, drawings: Tensor, recipe: Recipe, on_step: Any) -> Adapted:
        seconds = fake(recipe)
        for step in range(1, 17):
            on_step(Progress(step, step / 16, 1 / step, elapsed_s=seconds))
        return Adapted(network(), recipe.steps, seconds, stopped=False)

    storage = open_storage(config.storage, worker="me")
    storage.create_study("s", {}, [{"lr": lr} for lr in lrs])
    study = load_study(storage, "s", pruner=optuna.pruners.NopPruner())
    problem = problem_of(config, instances)
    visuals = Visuals(Gallery(place), problem)
    with pytest.MonkeyPatch.context() as patch, Display("s", None, 0) as display:
        patch.setattr("finetune.side_by_side.adapt_together", one_by_one(adapt))
        Loop(
            study=study,
            storage=storage,
            run=Objective(config, problem, visuals),
            budget=Budget(trials=len(lrs)),
            recovery=Recovery(),
            display=display,
            feasible_s=config.feasible_s,
            plot=visuals.of_trial,
        ).work()
    trials = study.get_trials()
    storage.engine.dispose()
    return trials


@pytest.fixture
def run(config: StudyConfig, instances: list[RuneInstance]) -> Run:
    return partial(run_trials, config, instances)


@dataclass(frozen=True)
class Done:
    """A study of one trial, which is complete and whose files are kept in ``pictures``."""

    folder: Path
    config: StudyConfig
    trial: FrozenTrial

    @property
    def pictures(self) -> str:
        return str(self.folder / "pictures")

    @property
    def files(self) -> dict[str, str]:
        return files_of(self.trial, self.config)


@pytest.fixture(scope="module")
def done(instances: list[RuneInstance], tmp_path_factory: pytest.TempPathFactory) -> Done:
    """To be looked at only."""
    folder = tmp_path_factory.mktemp("done")
    config = config_in(folder)

    def seconds(recipe: Recipe) -> float:
        return 1.0 + recipe.seed

    (trial,) = run_trials(config, instances, seconds, [0.01], str(folder / "pictures"))
    return Done(folder, config, trial)


@pytest.fixture
def changeable(done: Done, tmp_path: Path) -> Done:
    """A copy of it."""
    shutil.copytree(done.folder, tmp_path, dirs_exist_ok=True)
    return Done(tmp_path, config_in(tmp_path), done.trial)


def note_of(trial: FrozenTrial) -> str:
    """A trial's note in the dashboard."""
    return section_markdown(
        trial_section(run_of(trial), RecipeMethod(), f"/artifacts/1/{trial._trial_id}")
    )


def files_of(trial: FrozenTrial, config: StudyConfig) -> dict[str, str]:
    """Names of a trial's artifacts with their ids, as Optuna lists them."""
    storage = open_storage(config.storage)
    found = get_all_artifact_meta(trial, storage=storage)
    return {meta.filename: meta.artifact_id for meta in found}


class TestPictures:
    def test_three_rows_small_and_the_same_each_time(self, instances: list[RuneInstance]) -> None:
        pictures = InstancePictures()
        drawn = pictures.draw(instances[0], network())
        image = Image.open(io.BytesIO(drawn))
        assert image.format == "PNG"
        assert len(drawn) < 100_000
        width, height = image.size
        assert width > N_SAMPLES * 28
        # The first row is the real drawings, all white here.
        real = image.crop((width // 2, 0, width, height // 3))
        after = image.crop((width // 2, 2 * height // 3, width, height))
        assert real.getextrema()[1] == 255
        assert real.tobytes() != after.tobytes()
        assert pictures.draw(instances[0], network()) == drawn

    def test_no_random_number_is_taken_and_the_mode_stays(self) -> None:
        model = network().train()
        before = torch.random.get_rng_state()
        images = draw_samples(model)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert model.training
        assert images.shape == (N_SAMPLES, 1, 28, 28)
        assert 0 <= images.min() <= images.max() <= 1

    def test_a_network_that_gives_no_number_still_has_a_picture(
        self, instances: list[RuneInstance]
    ) -> None:
        broken = network()
        with torch.no_grad():
            next(broken.parameters()).fill_(float("nan"))
        assert Image.open(io.BytesIO(InstancePictures().draw(instances[0], broken)))


def test_a_plot_of_any_number_of_calls_is_small() -> None:
    curve, per_t_bin = tuple(1 / k for k in range(1, 17)), (0.1, None, *[0.2] * 8)
    for n in (1, 9):
        calls = [
            Call(instance=f"r{i}", loss=0.2, curve=curve, per_t_bin=per_t_bin) for i in range(n)
        ]
        drawn = plot_trial(calls)
        assert Image.open(io.BytesIO(drawn)).format == "PNG"
        assert len(drawn) < 50_000
    assert plot_trial([Call(instance="older", loss=0.2)])  # of a release that stored neither


class TestTrials:
    def test_have_a_picture_of_each_call_and_a_plot(self, done: Done) -> None:
        files = done.files
        assert sorted(files) == [
            "learning curve and loss by time.png",
            "r0-0.png",
            "r1-0-1.png",
        ]
        store = open_store(done.pictures)
        assert store is not None
        for artifact_id in files.values():
            assert Image.open(store.open_reader(artifact_id)).format == "PNG"
        calls = done.trial.user_attrs["instances"]
        assert [c["picture"] for c in calls] == [files["r0-0.png"], files["r1-0-1.png"]]
        assert all(len(c["per_t_bin"]) == 10 for c in calls)
        assert sum(calls[0]["per_t_bin"]) / 10 == pytest.approx(calls[0]["loss"], rel=1e-3)

    def test_have_a_note_of_recipe_losses_seconds_and_pictures(self, done: Done) -> None:
        trial = done.trial
        note = note_of(trial)
        first = trial.user_attrs["instances"][0]
        assert f"Loss {trial.value:.4f} ± {trial.user_attrs['standard_error']:.4f}" in note
        loss = f"{first['loss']:.4f} ± {first['standard_error']:.4f}"
        assert "| instance | loss | seconds | steps |" in note
        assert f"| r0/0 | {loss} | 1.0 | {first['steps']} |" in note
        assert "| r1/0/1 |" in note
        assert "Feasible: the longest call took 2.0 s; 10 s are allowed." in note
        words = f"{trial.user_attrs['cost']:.2g} of the plain network's"
        assert f"Cost of an answer: {words}." in note
        assert "| lr | 0.01 | 0.004 |" in note
        for name, artifact_id in done.files.items():
            assert f"/artifacts/1/{trial._trial_id}/{artifact_id})" in note, name

    def test_leave_notes_and_plots_to_the_dashboard(self, done: Done) -> None:
        assert "hpo:note" not in done.trial.system_attrs
        stored = open_storage(done.config.storage).get_study_system_attrs(1)
        assert not [key for key in stored if key.startswith(("dashboard:", "hpo:story"))]

    def test_say_why_they_ended(self, run: Run, tmp_path: Path) -> None:
        def seconds(recipe: Recipe) -> float:
            if recipe.lr == 0.02:
                raise AdaptationError("loss is nan at step 3")
            if recipe.lr == 0.03:
                raise ZeroDivisionError("a_bug")
            return 11.0

        slow, broken, bug = run(seconds, [0.01, 0.02, 0.03], str(tmp_path / "pictures"))
        notes = [note_of(t) for t in (slow, broken, bug)]
        assert "Trial 0: infeasible" in notes[0]
        assert "Why: a call took 11.0 s; 10 are allowed" in notes[0]
        assert "Not feasible: the longest call took 11.0 s" in notes[0]
        assert "Trial 1: not finite" in notes[1]
        assert "r0/0: loss is nan at step 3" in notes[1]
        assert "Trial 2: bug" in notes[2]
        assert "ZeroDivisionError: a\\_bug" in notes[2]

    def test_do_without_where_nothing_is_kept(
        self, run: Run, config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (trial,) = run(lambda r: 1.0, [0.01], "none")
        assert trial.state == TrialState.COMPLETE
        assert files_of(trial, config) == {}
        assert "![" not in note_of(trial)
        assert not list(tmp_path.glob("*artifacts*"))

    def test_do_not_fail_when_their_files_can_not_be_kept(
        self, run: Run, config: StudyConfig, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("no directory")
        trials = run(lambda r: 1.0, [0.01, 0.02], str(tmp_path / "file"))
        assert [t.state for t in trials] == [TrialState.COMPLETE] * 2
        assert [files_of(t, config) for t in trials] == [{}, {}]
        assert "| r0/0 |" in note_of(trials[0])

    def test_that_were_handed_back_show_only_their_last_attempt(
        self, run: Run, config: StudyConfig, tmp_path: Path
    ) -> None:
        place, attempts = str(tmp_path / "pictures"), []

        def interrupt(recipe: Recipe) -> float:
            if recipe.seed == 1 and len(attempts) == 0:
                attempts.append(1)
                raise KeyboardInterrupt
            return 1.0

        with pytest.raises(KeyboardInterrupt):
            run(interrupt, [0.01], place)
        (waiting,) = load_study(open_storage(config.storage), "s").trials
        assert waiting.state == TrialState.WAITING
        assert files_of(waiting, config) == {}
        (stale,) = {p.name for p in Path(place).iterdir()}
        (trial,) = run(interrupt, [0.01], place)
        assert len(files_of(trial, config)) == 3
        assert stale not in files_of(trial, config).values()
        assert stale not in note_of(trial)


class TestDashboard:
    @pytest.fixture
    def serve(self) -> Iterator[Callable[..., Any]]:
        opened: list[LiveDashboard] = []

        def serve(done: Done, **options: Any) -> Any:
            store = open_store(done.pictures)
            opened.append(LiveDashboard(done.config.storage, "s", "start", store))
            return guard(opened[-1], HERE, **options)

        yield serve
        for live in opened:
            live.close()

    def test_shows_notes_and_pictures(
        self, done: Done, serve: Callable[..., Any], ask: Ask
    ) -> None:
        app, trial = serve(done), done.trial
        detail = ask(app, "/api/studies/1").json
        for shown in (detail["trials"][0], detail["best_trials"][0]):
            assert shown["note"]["body"] == note_of(trial)
            assert len(shown["artifacts"]) == 3
        for artifact in detail["trials"][0]["artifacts"]:
            path = f"/artifacts/1/{trial._trial_id}/{artifact['artifact_id']}"
            assert path in detail["trials"][0]["note"]["body"]
            answer = ask(app, path)
            assert answer.headers["content-type"] == "image/png"
            assert Image.open(io.BytesIO(answer.body)).format == "PNG"

    def test_shows_a_persons_note_instead(
        self, changeable: Done, serve: Callable[..., Any], ask: Ask
    ) -> None:
        app = serve(changeable, allow_writes=True)
        url = f"/api/studies/1/{changeable.trial._trial_id}/note"
        for text in ("mine", "mine again", ""):
            for _ in range(2):  # the second answer is a prepared one
                version = ask(app, "/api/studies/1").json["trials"][0]["note"]["version"]
            assert ask(app, url, "PUT", {"version": version + 1, "body": text}).status == 204
            for here in (app, serve(changeable)):
                shown = ask(here, "/api/studies/1").json["trials"][0]["note"]["body"]
                assert shown == (text or note_of(changeable.trial))

    def test_says_that_a_store_does_not_answer(
        self, changeable: Done, serve: Callable[..., Any], ask: Ask
    ) -> None:
        trial = changeable.trial
        picture = trial.user_attrs["instances"][0]["picture"]
        path = f"/artifacts/1/{trial._trial_id}/{picture}"
        file = Path(changeable.pictures) / picture
        file.unlink()
        app = serve(changeable)
        assert ask(app, path).status == 404
        file.mkdir()  # even root can't read that
        answer = ask(app, path)
        assert answer.status == 503
        assert "store of artifacts" in answer.text
