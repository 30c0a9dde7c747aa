"""A real worker process with everything but the network: run as a script by the tests.

``cheap_worker.py URL TRIALS [key=value ...]``: ``start`` (queued values of x), ``step_s``,
``reports``, ``fill_at``, ``heartbeat_s``, ``grace_s``, ``retries``.
"""

from __future__ import annotations

import sys
import time

import optuna
import sqlalchemy as sa

from hpo.errors import run_command
from hpo.process.logging import info, start_log
from hpo.process.signals import StopError, raise_on_signals
from hpo.study.config import Budget, StudyConfig
from hpo.study.create import join
from hpo.worker.display import Display
from hpo.worker.loop import Loop, Watch


def main() -> int:
    raise_on_signals()
    url, trials = sys.argv[1], int(sys.argv[2])
    given = dict(argument.split("=") for argument in sys.argv[3:])
    step_s, n_reports = float(given.get("step_s", 0.02)), int(given.get("reports", 2))
    recovery = {k: given[k] for k in ("heartbeat_s", "grace_s", "retries") if k in given}
    config = StudyConfig.model_validate(
        {
            "name": "cheap",
            "storage": url,
            "instances": {"source": "drawn"},
            "space": {"lr": {"type": "float", "low": 0.0001, "high": 0.9}},
            "start": [{"lr": float(x)} for x in given.get("start", "").split(",") if x],
            "sampler": {"name": given.get("sampler", "random"), "seed": 3},
            "recovery": {k: float(v) if "_s" in k else int(v) for k, v in recovery.items()},
        }
    )

    def run(trial: optuna.Trial, watch: Watch) -> float:
        lr = trial.suggest_float("lr", 0.0001, 0.9)
        info(f"running {trial.number}")
        if str(trial.number) == given.get("fill_at"):
            # SQLite's own way to be full: it may not grow beyond what it has.
            engine = watch.storage.engine
            sa.event.listen(engine, "connect", lambda c, _: c.execute("PRAGMA max_page_count=1"))
            engine.dispose()
            trial.set_user_attr("large", "x" * 100_000)
        for number in range(1, n_reports + 1):
            watch.between_calls()
            watch.display.show_trial(f"trial {trial.number}, part {number}", 0.5, lr)
            slept = 0.0
            while slept < step_s:
                watch.check()
                time.sleep(0.02)
                slept += 0.02
            with watch.storage.batch(trial._trial_id):
                trial.report(lr + number, number)
                trial.set_user_attr("seen", number)
        return lr

    try:
        study, storage = join(config, url, {"measures": given.get("measures", "this")})
        start_log(storage.worker)
        info("joined")
        with Display("cheap", trials, 0) as display:
            loop = Loop(study, storage, run, Budget(trials=trials), config.recovery, display)
            info(f"done: {loop.work()}")
    except StopError as stop:
        return stop.exit_code
    return 0


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    run_command(main)
