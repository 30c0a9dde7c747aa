"""What stands in for calls that would take minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from finetune.adapt import Adapted, Progress
from finetune.side_by_side import Task

Together = Callable[[Sequence[Task], Callable[[int, Progress], Any]], list[Adapted]]


def one_by_one(adapt: Callable[..., Adapted]) -> Together:
    """In the place of `adapt_together`: ``adapt`` for each task."""

    def adapt_together(
        tasks: Sequence[Task], on_step: Callable[[int, Progress], Any]
    ) -> list[Adapted]:
        return [
            adapt(t.pretrained_model, t.drawings, t.recipe, partial(on_step, k))
            for k, t in enumerate(tasks)
        ]

    return adapt_together
