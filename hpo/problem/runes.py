"""The problem of this project: a network learns a rune, and is scored on other drawings of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from ..formatting import counted
from .base import Evaluation, Instance, NotFiniteError, ProofError
from .points import points
from .settings import Confirm, Estimator, Instances

# Torch takes seconds to import, and grades need none of it.
if TYPE_CHECKING:
    from torch import Tensor, nn

    from finetune.data.runes import RuneSource
    from finetune.scoring.estimators import NoiseTable

    from .instances import RuneInstance
    from .pictures import InstancePictures

_COST_SHARE, _COST_S = 0.05, 1.0  # time to measure a network's cost: share of the call's; at most


@runtime_checkable
class Remote(Protocol):
    """A network that runs in another process."""

    def measure_cost(self, drawings: Tensor, label: int, budget_s: float) -> float:
        """CPU time of an answer, relative to the plain network's; see `finetune.scoring.cost`."""


class RuneProblem:
    """See `hpo.problem.base.Problem`.

    Args:
        asked: the runes, splits, networks and seeds of trials.
        estimator: settings of the noise that all losses are measured on.
        confirm: the instances of confirmations.
        data: directory of the data, as in `finetune.data.runes.open_source`.
    """

    def __init__(
        self, asked: Instances, estimator: Estimator, confirm: Confirm, data: Path | None = None
    ) -> None:
        self._asked, self._estimator, self._confirm = asked, estimator, confirm
        self._data = data

    @cached_property
    def source(self) -> RuneSource:
        """The drawings.

        Raises:
            UserError: they are missing or can't be used.
        """
        from finetune.data.runes import open_source

        from ..errors import UserError

        asked = self._asked
        try:
            return open_source(
                asked.source, self._data, alphabet=asked.alphabet, drawings=asked.drawings
            )
        except UserError as error:
            if asked.source == "omniglot" and asked.alphabet is None:
                raise UserError(f"{error}; --study quickstart needs no data") from error
            raise

    @cached_property
    def _held_in(self) -> list[RuneInstance]:
        from .instances import load_instances

        return load_instances(self._asked, self.source)

    @cached_property
    def _held_out(self) -> list[RuneInstance]:
        from .instances import load_held_out

        return load_held_out(self._asked, self._confirm, self.source)

    @cached_property
    def _pictures(self) -> InstancePictures:
        from .pictures import InstancePictures

        return InstancePictures()

    def instances(self, held_out: bool = False) -> Sequence[RuneInstance]:
        return self._held_out if held_out else self._held_in

    def evaluate(
        self, model: nn.Module, instance: Instance, seconds: float, table_seed: int | None = None
    ) -> Evaluation:
        from finetune.data.runes import NEW_LABEL
        from finetune.machine.device import training_device
        from finetune.machine.threads import one_thread
        from finetune.scoring.cost import measure_cost
        from finetune.scoring.estimators import estimate

        rune = _rune(instance)
        # Evaluated where it was trained: it comes back to where the pretrained network is.
        device = training_device(next(model.parameters()).device)
        model = model.to(device)
        with one_thread(device):  # the number of threads may change a sum's last bits
            losses = estimate(model, rune.split.test, NEW_LABEL, self.noise_table(rune, table_seed))
        if not math.isfinite(losses.mean):
            raise NotFiniteError(f"{rune.label}: the loss on unseen drawings is {losses.mean}")
        budget_s = min(_COST_S, _COST_SHARE * seconds)
        if isinstance(model, Remote):
            ratio = model.measure_cost(rune.split.test, NEW_LABEL, budget_s)
        else:
            drawings = rune.split.test
            ratio = measure_cost(
                model, rune.pretrained, drawings, NEW_LABEL, budget_s=budget_s
            ).ratio
        return Evaluation(
            loss=losses.mean,
            standard_error=losses.standard_error,
            by_t=tuple(losses.per_t_bin),
            cost=round(ratio, 3),
        )

    def noise_table(self, instance: RuneInstance, seed: int | None = None) -> NoiseTable:
        """The times and noises that losses on the instance are measured on, for all recipes.

        Args:
            seed: seed of the table; None: the study's.
        """
        from finetune.scoring.estimators import NoiseTable

        e = self._estimator
        seed = e.seed if seed is None else seed
        return NoiseTable(len(instance.split.test), e.strata, e.replicates, seed, instance.place)

    def picture(self, instance: Instance, model: nn.Module) -> bytes:
        return self._pictures.draw(_rune(instance), model)

    def fingerprint(self) -> dict[str, str]:
        from finetune.model.checkpoints import network_digest

        instances, asked = self._held_in, self._asked
        networks = {i.network: network_digest(i.pretrained)[:12] for i in instances}
        labels = [f"{i.label}@{i.network}" for i in instances]
        return {
            "data": f"{self.source.name} {self.source.mark(asked.train)}",
            "networks": " ".join(f"{name}:{digest}" for name, digest in networks.items()),
            "instances": " ".join([asked.resize, *labels]),
            "estimator": json.dumps(self._estimator.model_dump(mode="json")),
        }

    def identity(self, instance: Instance) -> list[str]:
        from finetune.model.checkpoints import network_digest

        rune = _rune(instance)
        return [network_digest(rune.pretrained), rune.resize or self._asked.resize]

    def grade(self, loss: float) -> str | None:
        if not self._asked.has_points:
            return None
        return counted(points(loss), "point")

    def challenge(self, file: Path, runes: int, passes: int) -> Iterator[str]:
        from finetune import challenge
        from finetune.model.checkpoints import list_networks

        from .instances import unseen_runes

        chosen = unseen_runes(self._asked, self.source, runes)
        if not chosen:
            yield "challenge: left out, because the study's trials saw every rune that there is"
            return
        try:
            scores = challenge.run_challenge(
                challenge.load_submission(file),
                self.source,
                chosen,
                list_networks(self._asked.pretrained),
                resize=self._asked.resize,
                n_train=self._asked.train,
                t_samples=passes,
            )
        except challenge.ChallengeFailure as failure:
            raise ProofError(str(failure)) from failure
        with_points = challenge.earns_points(self.source, scores)
        yield challenge.table(scores, with_points=with_points)
        loss, error = challenge.mean_loss(scores)
        worth = f"{points(loss)} points, " if with_points else ""
        yield (
            f"challenge: {worth}loss {loss:.4f} ± {error:.4f} on "
            f"{counted(len(chosen), 'held-out rune')}"
        )


def _rune(instance: Any) -> RuneInstance:
    return cast("RuneInstance", instance)
