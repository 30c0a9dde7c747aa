"""Functions of a person's own that are called when a trial ends."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from examples import mlflow_log, webhook
from hpo.errors import UserError
from hpo.process.logging import start_log
from hpo.study.config import Budget, load_study_file
from hpo.study.create import join
from hpo.worker.callbacks import AfterTrial, TrialEnded, load_callback
from hpo.worker.display import Display
from hpo.worker.loop import Loop
from hpo.worker.objective import Objective
from tests.cheap import CHEAP_TOML

EVENT = TrialEnded("s", "me", 3, "complete", None, 0.25, 0.01, {"lr": 0.1}, None, 2.0, True)


def run(tmp_path: Path, after_trial: AfterTrial | None, trials: int = 3) -> list[FrozenTrial]:
    file = tmp_path / "s.toml"
    file.write_text(
        f'name = "s"\nstorage = "sqlite:///{tmp_path}/s.db"\n[instances]\nsource = "drawn"\n'
        + CHEAP_TOML + '[[start]]\nlr = 0.5\n[[start]]\nlr = 0.01\n'
        '[space.lr]\ntype = "float"\nlow = 0.001\nhigh = 0.9\n'
    )  # fmt: skip
    config = load_study_file(str(file))
    study, storage = join(config, config.storage, {"measures": "this"})
    with Display("s", None, 0) as display:
        Loop(
            study=study,
            storage=storage,
            run=Objective(config, config.load_problem(None)),
            budget=Budget(trials=trials),
            recovery=config.recovery,
            display=display,
            after_trial=after_trial,
        ).work()
    return study.get_trials()


def test_each_trial_that_ends_is_told_once(tmp_path: Path) -> None:
    events: list[TrialEnded] = []
    trials = run(tmp_path, events.append)
    assert [e.number for e in events] == [0, 1, 2]
    assert [e.loss for e in events] == [t.value for t in trials]
    assert [e.params for e in events] == [t.params for t in trials]
    assert events[0].is_best and events[1].is_best and events[1].outcome == "complete"
    assert events[1].recipe is not None and events[1].recipe["lr"] == 0.01


def test_a_callback_that_fails_is_a_line_and_no_lost_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: TrialEnded) -> None:
        raise RuntimeError("the server is away")

    start_log("me")
    trials = run(tmp_path, fail)
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    said = capsys.readouterr().err
    assert said.count("the callback after_trial failed: RuntimeError: the server is away") == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "'nowhere' is no function; write MODULE:FUNCTION"),
        ("no_module:f", "no_module:f can't be imported"),
        ("json:nothing", "json has no nothing"),
        ("json:__doc__", "can't be called"),
    ],
)
def test_a_callback_that_is_none_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    file = tmp_path / "s.toml"
    file.write_text(
        'name = "s"\nstorage = "sqlite:///s.db"\n[instances]\nsource = "drawn"\n' + CHEAP_TOML
        + f'[callbacks]\nafter_trial = "{name}"\n[space.lr]\ntype = "float"\nlow = 0.1\nhigh = 1\n'
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        load_study_file(str(file))
    assert message in str(error.value) and "\n" not in str(error.value)


# The examples


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What a web server was posted."""
    bodies: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("RUNES_WEBHOOK", f"http://127.0.0.1:{server.server_port}/")
    yield bodies
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_webhook_posts_a_line(received: list[Any]) -> None:
    after_trial = load_callback("examples.webhook:post")
    assert after_trial is webhook.post
    after_trial(EVENT)
    assert received == [{"text": "s: trial 3 is complete, loss 0.2500, the best so far"}]


def test_mlflow_has_a_run_for_each_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow_log.log(EVENT)
    (found,) = mlflow.search_runs(experiment_names=["s"], output_format="list")
    assert found.data.metrics["loss"] == 0.25 and found.data.params == {"lr": "0.1"}
