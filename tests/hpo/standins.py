"""What stands in for calls that would take minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from finetune.adapt import Adapted, Progress, Task

Together = Callable[[Sequence[Task], Callable[[Sequence[Progress]], Any]], list[Adapted]]


def one_by_one(adapt: Callable[..., Adapted]) -> Together:
    """In the place of `adapt_together`: ``adapt`` for each task, which all seem to do its steps."""

    def adapt_together(
        tasks: Sequence[Task], on_step: Callable[[Sequence[Progress]], Any]
    ) -> list[Adapted]:
        return [
            adapt(t.pretrained_model, t.drawings, t.recipe, lambda p: on_step([p] * len(tasks)))
            for t in tasks
        ]

    return adapt_together
