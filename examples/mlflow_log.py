"""Log each trial that ends to MLflow: ``[callbacks] after_trial = "examples.mlflow_log:log"``.

It needs ``pip install mlflow``, which takes the server's address from MLFLOW_TRACKING_URI.
"""

from __future__ import annotations

from hpo.worker.callbacks import TrialEnded


def log(event: TrialEnded) -> None:
    """A run for each trial, in an experiment for each study."""
    import mlflow

    mlflow.set_experiment(event.study)
    with mlflow.start_run(run_name=f"trial {event.number}"):
        mlflow.log_params(dict(event.params))
        mlflow.set_tags({"outcome": event.outcome, "worker": event.worker})
        mlflow.log_metric("seconds", event.seconds)
        if event.loss is not None:
            mlflow.log_metric("loss", event.loss)
