"""Tell a web address of each trial that ends: `after_trial = "examples.webhook:post"`.

The line belongs to ``[callbacks]`` of a study file.

The address is in the variable RUNES_WEBHOOK, such as that of a chat's incoming webhook.
"""

from __future__ import annotations

import json
import os
import urllib.request

from hpo.worker.callbacks import TrialEnded

_LIMIT_S = 5.0


def post(event: TrialEnded) -> None:
    """Post one line as JSON, ``{"text": ...}``."""
    loss = "no loss" if event.loss is None else f"loss {event.loss:.4f}"
    best = ", the best so far" if event.is_best else ""
    text = f"{event.study}: trial {event.number} is {event.outcome}, {loss}{best}"
    request = urllib.request.Request(
        os.environ["RUNES_WEBHOOK"],
        data=json.dumps({"text": text}).encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=_LIMIT_S).close()
