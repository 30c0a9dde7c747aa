"""A trial: one recipe, measured instance by instance with the timed call."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import optuna

from finetune.adapt import Progress
from finetune.recipe import Recipe, RecipeError

from ..artifacts.uploads import Artifact, Gallery
from ..problem.evaluate import machine, timed_calls
from ..problem.instances import Instance
from ..pruners.learning_curve import KnownCurves, LearningCurve
from ..pruners.racing import Race, RacingPruner
from ..study.config import StudyConfig
from ..study.space import sample_recipe
from ..trial.outcome import Outcome, TrialEndedError
from ..trial.record import Measured
from .loop import Watch
from .visuals import Showing

_DIGITS = 4  # that are kept of losses by t, whose noise is larger


class Objective:
    """What workers minimise: the mean loss over the instances.

    After each instance the mean so far is reported under the number of instances, so that a
    pruner compares trials on the same ones.  A call over the limit ends the trial.

    Args:
        showing: makes each call's picture; none by default.
        together: instances whose calls go side by side.
    """

    def __init__(
        self,
        config: StudyConfig,
        instances: Sequence[Instance],
        showing: Showing | None = None,
        together: int = 1,
    ) -> None:
        self.config = config
        self.instances = instances
        self._showing = showing or Showing(Gallery(), config.feasible_s)
        self._together = together
        self._race = Race()
        self._curves = KnownCurves()

    def __call__(self, trial: optuna.Trial, watch: Watch) -> float:
        """The mean loss of the trial's recipe.

        Raises:
            TrialEndedError: the trial is over earlier, and how.
            TrialTakenError: somebody else has it now.
        """
        recipe = self._sample(trial, watch)
        measured: list[Measured] = []
        while len(measured) < len(self.instances):
            first = len(measured)
            for one, picture in self._measure(trial, watch, recipe, first):
                measured.append(one)
                self._report(trial, watch, measured, picture)
            longest_s = max(m.seconds for m in measured)
            if longest_s > self.config.feasible_s:
                raise TrialEndedError(
                    Outcome.INFEASIBLE,
                    f"a call took {longest_s:.1f} s; {self.config.feasible_s:g} are allowed",
                )
            self._check_cost(measured)
            if len(measured) < len(self.instances) and trial.should_prune():
                raise self._weak(trial, [m.loss for m in measured])
        return _mean_loss(measured)

    def _check_cost(self, measured: Sequence[Measured]) -> None:
        cost, allowed = _mean_cost(measured), self.config.limits.cost
        if allowed is not None and cost is not None and cost > allowed:
            raise TrialEndedError(
                Outcome.INFEASIBLE,
                f"an answer costs {cost:.2f} of the plain network's; {allowed:g} are allowed",
            )

    def _report(
        self, trial: optuna.Trial, watch: Watch, measured: list[Measured], picture: Artifact | None
    ) -> None:
        """Store what is measured so far; ``picture`` shows the last of it."""
        number = len(measured)
        variance = sum(m.standard_error**2 for m in measured)
        # At once, so that a worker that is lost here leaves nothing by halves.
        with watch.storage.batch(trial._trial_id) as writes:
            if picture is not None:
                writes.system_attrs.update(picture.link)
            trial.report(_mean_loss(measured), number)
            trial.set_user_attr("instances", [asdict(m) for m in measured])
            trial.set_user_attr("standard_error", math.sqrt(variance) / number)
            trial.set_user_attr("longest_call_s", max(m.seconds for m in measured))
            trial.set_user_attr("cost", _mean_cost(measured))

    def _weak(self, trial: optuna.Trial, losses: Sequence[float]) -> TrialEndedError:
        """The end of a trial that the pruner drops, with the loss that it probably has."""
        study = trial.study
        reason = f"weak after {len(losses)} of {len(self.instances)} instances"
        standings = self._race.standings(study)
        if standings is None or standings.n_instances != len(self.instances):
            return TrialEndedError(Outcome.PRUNED, reason)
        if isinstance(study.pruner, RacingPruner):
            verdict = study.pruner.judge(standings, losses)
            reason += f": {verdict.ratio:.3f} of the best trial's loss (p = {verdict.p_value:.2g})"
        return TrialEndedError(Outcome.PRUNED, reason, standings.full_loss(losses))

    def _sample(self, trial: optuna.Trial, watch: Watch) -> Recipe:
        with watch.storage.batch(trial._trial_id):
            try:
                recipe = sample_recipe(trial, self.config.space, self.config.fixed)
            except RecipeError as error:
                impossible = error
            else:
                trial.set_user_attr("recipe", json.dumps(recipe.to_dict()))
                trial.set_user_attr("machine", machine())
                return recipe
        raise TrialEndedError(Outcome.PRUNED, f"impossible: {impossible}")

    def _measure(
        self, trial: optuna.Trial, watch: Watch, recipe: Recipe, first: int
    ) -> Iterator[tuple[Measured, Artifact | None]]:
        """The next calls, from instance ``first`` on, and their pictures."""
        instances = self.instances[first : first + self._together]
        done = first + len(instances)
        more = f" + {len(instances) - 1} more" if len(instances) > 1 else ""
        which = f"{instances[0].label}{more} ({done}/{len(self.instances)})"
        title = f"trial {trial.number}, {which}"
        curves = [LearningCurve() for _ in instances]
        prunes = not isinstance(trial.study.pruner, optuna.pruners.NopPruner)
        known = [self._curves.on(trial.study, i.label) if prunes else [] for i in instances]

        def on_step(index: int, progress: Progress) -> None:
            watch.check()
            watch.display.show_trial(title, progress.share, progress.loss)
            curves[index].add(progress.share, progress.loss)
            if curves[index].is_hopeless(known[index]):
                raise TrialEndedError(
                    Outcome.HOPELESS,
                    f"on {instances[index].label}: training loss {progress.loss:g} after "
                    f"{progress.share:.0%} of the run, far above {len(known[index])} earlier ones",
                )

        watch.display.show_trial(title)
        seed = self.config.estimator.seed
        calls = timed_calls(self.config, recipe, instances, seed, on_step)
        for instance, called, curve in zip(instances, calls, curves, strict=True):
            picture = self._showing.of_call(instance, called.model)
            yield (
                Measured(
                    instance=instance.label,
                    loss=called.losses.mean,
                    standard_error=called.losses.standard_error,
                    seconds=called.seconds,
                    steps=called.steps,
                    curve=curve.means(),
                    per_t_bin=tuple(_short(loss) for loss in called.losses.per_t_bin),
                    picture=picture.id if picture else None,
                    cost=called.cost,
                ),
                picture,
            )


def _mean_cost(measured: Sequence[Measured]) -> float | None:
    """Of the calls so far: each is timed for a moment, and a mean of them is steadier."""
    costs = [m.cost for m in measured if m.cost is not None]
    return sum(costs) / len(costs) if costs else None


def _mean_loss(measured: Sequence[Measured]) -> float:
    return sum(m.loss for m in measured) / len(measured)


def _short(loss: float) -> float | None:
    """A loss to store; None for that of a bin into which no time fell."""
    return float(f"{loss:.{_DIGITS}g}") if math.isfinite(loss) else None
