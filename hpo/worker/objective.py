"""A trial: one recipe, measured instance by instance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import optuna

from ..artifacts.uploads import Artifact, Gallery
from ..problem.base import Instance, InvalidValuesError, Problem, Progress, Values
from ..problem.measure import measure
from ..pruners.racing import Race, RacingPruner
from ..storage.calls import CallRow
from ..study.config import StudyConfig
from ..study.space import sample_values
from ..trial.calls import WALL, KeptCall, KeptCalls
from ..trial.outcome import Outcome, TrialEndedError
from ..trial.record import Call, Machine, TrialRecord, mean_loss, write_trial
from ..trial.stored import finite
from .learning_curve import LearningCurve
from .loop import Watch
from .visuals import Visuals

_DIGITS = 4  # that are kept of losses by t, whose noise is larger


@dataclass(frozen=True)
class _Measured:
    """A call of a trial."""

    call: Call
    picture: Artifact | None
    row: CallRow | None = None  # to keep; None: the call was read, or none are kept


class Objective:
    """What workers minimise: the mean loss over the instances.

    After each instance the mean so far is reported under the number of instances, so that a
    pruner compares trials on the same ones.  A call over the limit ends the trial.  A call that is
    kept in the database is read and not made.

    Args:
        problem: whose instances trials are measured on.
        visuals: makes each call's picture; none by default.
        together: instances whose calls go side by side.
        kept: calls that were made already, and where those made here are kept; None: nowhere.
    """

    def __init__(
        self,
        config: StudyConfig,
        problem: Problem,
        visuals: Visuals | None = None,
        together: int = 1,
        kept: KeptCalls | None = None,
    ) -> None:
        self.config = config
        self.method = config.load_method()
        self.problem = problem
        self.instances = problem.instances()
        self._visuals = visuals or Visuals(Gallery(), problem)
        self._together = together
        self._kept = kept
        self._race = Race()

    def __call__(self, trial: optuna.Trial, watch: Watch) -> float:
        """The mean loss of the trial's recipe.

        Raises:
            TrialEndedError: the trial is over earlier, and how.
            TrialTakenError: somebody else has it now.
        """
        recipe = self._sample(trial, watch)
        known = self._kept.of(recipe, self.instances, WALL) if self._kept else {}
        record = TrialRecord()
        while (done := len(record.instances)) < len(self.instances):
            batch = self.instances[done : done + self._together]
            for measured in self._measure(trial, watch, recipe, batch, known):
                record = TrialRecord.of_calls([*record.instances, measured.call])
                self._report(trial, watch, record, measured)
            self._check_limits(record)
            if len(record.instances) < len(self.instances) and trial.should_prune():
                raise self._weak(trial, [c.loss for c in record.instances])
        return mean_loss(record.instances)

    def _check_limits(self, record: TrialRecord) -> None:
        longest_s, feasible_s = record.longest_call_s, self.config.feasible_s
        if longest_s is not None and longest_s > feasible_s:
            raise TrialEndedError(
                Outcome.INFEASIBLE, f"a call took {longest_s:.1f} s; {feasible_s:g} are allowed"
            )
        cost, allowed = record.cost, self.config.limits.cost
        if allowed is not None and cost is not None and cost > allowed:
            raise TrialEndedError(
                Outcome.INFEASIBLE,
                f"an answer costs {cost:.2f} of the plain network's; {allowed:g} are allowed",
            )

    def _report(
        self, trial: optuna.Trial, watch: Watch, record: TrialRecord, last: _Measured
    ) -> None:
        """Store what is measured so far; ``last`` is its last call."""
        # In one batch, so that a worker that is lost here leaves nothing half written.
        with watch.storage.batch(trial._trial_id) as writes:
            if last.picture is not None:
                writes.system_attrs.update(last.picture.link)
            if last.row is not None:
                writes.calls.append(last.row)
            trial.report(mean_loss(record.instances), len(record.instances))
            write_trial(trial, record)

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

    def _sample(self, trial: optuna.Trial, watch: Watch) -> Values:
        with watch.storage.batch(trial._trial_id):
            try:
                space, fixed = self.config.space, self.config.fixed
                recipe = sample_values(trial, space, fixed, self.method)
            except InvalidValuesError as error:
                impossible = error
            else:
                ran_on = Machine.model_validate(self.method.machine())
                write_trial(trial, TrialRecord(recipe=recipe, machine=ran_on))
                return recipe
        raise TrialEndedError(Outcome.PRUNED, f"impossible: {impossible}")

    def _measure(
        self,
        trial: optuna.Trial,
        watch: Watch,
        recipe: Values,
        instances: Sequence[Instance],
        known: Mapping[str, KeptCall],
    ) -> Iterator[_Measured]:
        """The calls on these instances, in their order; those that are known are not made."""
        found = {i.label: call for i in instances if (call := self._read(i, known)) is not None}
        missing = [i for i in instances if i.label not in found]
        made = self._call(trial, watch, recipe, missing) if missing else iter(())
        for instance in instances:
            yield found[instance.label] if instance.label in found else next(made)

    def _read(self, instance: Instance, known: Mapping[str, KeptCall]) -> _Measured | None:
        """A call that somebody has made; None if it is to be made."""
        kept = known.get(instance.label)
        if kept is None or not isinstance(kept.outcome, Call):
            return None
        # Another study's picture may be at a place that is not this one's.
        picture_id = kept.outcome.picture if kept.is_own else None
        call = kept.outcome.model_copy(update={"picture": picture_id, "kept": True})
        return _Measured(call, self._visuals.of_kept_call(instance, picture_id))

    def _call(
        self, trial: optuna.Trial, watch: Watch, recipe: Values, instances: Sequence[Instance]
    ) -> Iterator[_Measured]:
        """Make the calls on these instances, side by side."""
        done = 1 + [i.label for i in self.instances].index(instances[-1].label)
        more = f" + {len(instances) - 1} more" if len(instances) > 1 else ""
        which = f"{instances[0].label}{more} ({done}/{len(self.instances)})"
        title = f"trial {trial.number}, {which}"
        curves = [LearningCurve() for _ in instances]

        def on_step(index: int, progress: Progress) -> None:
            watch.check()
            watch.display.show_trial(title, progress.share, progress.loss)
            if progress.loss is not None:
                curves[index].add(progress.share, progress.loss)

        watch.display.show_trial(title)
        limit_s = self.config.limit_s
        calls = measure(self.method, self.problem, recipe, instances, limit_s, on_step)
        for instance, called, curve in zip(instances, calls, curves, strict=True):
            picture = self._visuals.of_call(instance, called.model)
            found = called.evaluation
            call = Call(
                instance=instance.label,
                loss=found.loss,
                standard_error=finite(found.standard_error),
                seconds=called.seconds,
                steps=called.steps,
                curve=curve.means(),
                per_t_bin=tuple(_short(loss) for loss in found.by_t),
                picture=picture.id if picture else None,
                cost=finite(found.cost),
                **({"output": called.output} if called.output else {}),
            )
            row = None
            if self._kept is not None and self._kept.is_on:
                row = self._kept.row(recipe, instance, call, trial.number, WALL)
            yield _Measured(call, picture, row)


def _short(loss: float) -> float | None:
    """A loss to store; None for that of a bin into which no time fell."""
    return float(f"{loss:.{_DIGITS}g}") if math.isfinite(loss) else None
