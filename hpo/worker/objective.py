"""A trial: one recipe, measured instance by instance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import optuna

from ..artifacts.uploads import Artifact, Gallery
from ..clock.plan import Plan
from ..clock.profile import NotTimedError
from ..problem.base import (
    Instance,
    InvalidValuesError,
    Problem,
    Progress,
    Values,
    count_looks,
)
from ..problem.measure import measure
from ..process.logging import debug
from ..pruners.promotion import Promotion
from ..pruners.racing import Race, RacingPruner
from ..storage.calls import CallRow
from ..storage.transactions import FIXED_PARAMS_KEY
from ..study.config import StudyConfig
from ..study.space import Parameter, check_queued, sample_values
from ..trial.calls import KeptCall, KeptCalls, mark_of
from ..trial.outcome import Outcome, TrialEndedError
from ..trial.record import Call, Machine, TrialRecord, mean_loss, write_trial
from ..trial.stored import finite
from .learning_curve import LearningCurve
from .loop import Watch
from .pace import Pace
from .visuals import Visuals

_DIGITS = 4  # significant digits to store of losses by t; the noise is larger than the rest


Plans = Mapping[str, Plan]  # plans of calls by label of the instance; empty under wall clock


@dataclass(frozen=True)
class _Measured:
    """A call of a trial."""

    call: Call
    picture: Artifact | None
    row: CallRow | None = None  # to store; None: the call was read, or calls are not stored


class Objective:
    """The objective: the mean loss over the instances at the target speed.

    After each instance the mean so far is reported, with the number of instances as its step, so
    that a pruner compares trials on the same instances.  A trial that has made its looks at lower
    speeds waits until `Promotion` chooses its recipe for the target speed.  A call over the time
    limit ends the trial; under a reference clock the predicted time counts, and no call is made.
    A call that is stored in the database is read instead of made.

    Args:
        problem: provides the instances and measures losses.
        visuals: makes a picture of each call; none by default.
        together: how many calls go side by side.
        kept: the table of stored calls; None: calls are not stored.
        promotion: decides which recipes are measured at the target speed; None: all that are left.
    """

    def __init__(
        self,
        config: StudyConfig,
        problem: Problem,
        visuals: Visuals | None = None,
        together: int = 1,
        kept: KeptCalls | None = None,
        promotion: Promotion | None = None,
    ) -> None:
        self.config = config
        self.method = config.load_method()
        self.problem = problem
        self.instances = problem.instances()
        self._visuals = visuals or Visuals(Gallery(), problem)
        self._together = together
        self._kept = kept
        self._promotion = promotion
        self._n_looks = count_looks(self.instances)
        self._race = Race()
        self._clock = config.load_clock()
        self._pace = Pace()

    def forget(self) -> None:
        """Drop what is cached of the trials, because one of them has changed."""
        self._race.forget()

    def __call__(self, trial: optuna.Trial, watch: Watch) -> float:
        """Measure the trial's recipe and return its mean loss.

        Raises:
            TrialEndedError: the trial ended early; it says how.
            TrialTakenError: the trial belongs to another worker now.
        """
        recipe, plans = self._sample(trial, watch)
        self._check_predicted(plans)
        known = self._known(recipe, plans)
        record = TrialRecord()
        while (done := len(record.instances)) < len(self.instances):
            watch.between_calls()
            # Looks and calls at the target speed never go side by side.
            end = self._n_looks if done < self._n_looks else len(self.instances)
            batch = self.instances[done : min(done + self._together, end)]
            for measured in self._measure(trial, watch, recipe, plans, batch, known):
                calls = [*record.instances, measured.call]
                record = TrialRecord.of_calls(calls, self._n_looks)
                self._report(trial, watch, record, measured)
            self._check_limits(record)
            if len(record.instances) < len(self.instances) and trial.should_prune():
                raise self._weak(trial, [c.loss for c in record.instances])
            if len(record.instances) == self._n_looks:
                self._wait_unless_promoted(trial, record)
        return mean_loss(record.counted)

    def _wait_unless_promoted(self, trial: optuna.Trial, record: TrialRecord) -> None:
        """End a trial that has made its looks, unless its recipe is promoted.

        A promoted recipe is a trial of its own, which reads the looks instead of making them.
        """
        if self._promotion is None or all(call.kept for call in record.instances):
            return
        losses = [call.loss for call in record.instances]
        if not self._promotion.goes_on(trial.study, trial.number, losses):
            standings = self._race.standings(trial.study)
            raise TrialEndedError(
                Outcome.PRUNED,
                f"waits after {len(losses)} looks",
                standings.full_loss(losses) if standings is not None else None,
            )

    def _check_limits(self, record: TrialRecord) -> None:
        longest_s, feasible_s = record.longest_call_s, self.config.feasible_s
        if self._clock is None and longest_s is not None and longest_s > feasible_s:
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
        """Store the calls so far; ``last`` is the latest."""
        # In one batch, so that a worker that is lost here leaves nothing half written.
        with watch.storage.batch(trial._trial_id) as writes:
            if last.picture is not None:
                writes.system_attrs.update(last.picture.link)
            if last.row is not None:
                writes.calls.append(last.row)
            trial.report(mean_loss(record.instances), len(record.instances))
            write_trial(trial, record)
        call = last.call
        was = "read" if call.kept else f"{call.seconds or 0:.1f} s"
        debug(f"trial {trial.number}: {call.instance} loss {call.loss:.4f}, {was}")

    def _weak(self, trial: optuna.Trial, losses: Sequence[float]) -> TrialEndedError:
        """The end of a trial that the pruner drops, with its predicted loss."""
        study = trial.study
        reason = f"weak after {len(losses)} of {len(self.instances)} instances"
        standings = self._race.standings(study)
        complete = standings is not None and standings.n_instances == len(self.instances)
        if standings is None or not (complete or self._n_looks):
            return TrialEndedError(Outcome.PRUNED, reason)
        if isinstance(study.pruner, RacingPruner):
            verdict = study.pruner.judge(standings, losses)
            reason += f": {verdict.ratio:.3f} of the best trial's loss (p = {verdict.p_value:.2g})"
        return TrialEndedError(Outcome.PRUNED, reason, standings.full_loss(losses))

    def _sample(self, trial: optuna.Trial, watch: Watch) -> tuple[Values, Plans]:
        """Sample the trial's recipe; under a reference clock also plan its calls, by instance."""
        with watch.storage.batch(trial._trial_id):
            try:
                space, fixed = self.config.space, self.config.fixed
                _check_queued(trial, space)
                recipe = sample_values(trial, space, fixed, self.method)
                plans = self._plan(recipe)
            except (InvalidValuesError, NotTimedError) as error:
                impossible = error
            else:
                ran_on = Machine.model_validate(self.method.machine())
                if (speed := self.method.speed()) is not None:
                    ran_on = ran_on.model_copy(update={"speed": speed})
                record = TrialRecord(recipe=recipe, machine=ran_on)
                if plans:
                    record = record.model_copy(update={"predicted_s": _longest_s(plans)})
                write_trial(trial, record)
                return recipe, plans
        raise TrialEndedError(Outcome.PRUNED, f"impossible: {impossible}")

    def _plan(self, recipe: Values) -> Plans:
        if self._clock is None:
            return {}
        return {i.label: self._clock.plan(self.method, recipe, i) for i in self.instances}

    def _check_predicted(self, plans: Plans) -> None:
        predicted_s, feasible_s = _longest_s(plans), self.config.feasible_s
        if predicted_s > feasible_s:
            raise TrialEndedError(
                Outcome.INFEASIBLE,
                f"a call would take {predicted_s:.1f} s on the reference machine; "
                f"{feasible_s:g} are allowed",
            )

    def _known(self, recipe: Values, plans: Plans) -> dict[str, KeptCall]:
        """The stored calls of a recipe, by instance."""
        known: dict[str, KeptCall] = {}
        if self._kept is not None:
            of_clock: dict[str, list[Instance]] = {}
            for instance in self.instances:
                of_clock.setdefault(mark_of(plans.get(instance.label)), []).append(instance)
            for clock, instances in of_clock.items():
                known |= self._kept.of(recipe, instances, clock)
        return known

    def _measure(
        self,
        trial: optuna.Trial,
        watch: Watch,
        recipe: Values,
        plans: Plans,
        instances: Sequence[Instance],
        known: Mapping[str, KeptCall],
    ) -> Iterator[_Measured]:
        """The calls on these instances in order; known ones are read, the others made."""
        found = {i.label: call for i in instances if (call := self._read(i, known)) is not None}
        missing = [i for i in instances if i.label not in found]
        made = self._call(trial, watch, recipe, plans, missing) if missing else iter(())
        for instance in instances:
            yield found[instance.label] if instance.label in found else next(made)

    def _read(self, instance: Instance, known: Mapping[str, KeptCall]) -> _Measured | None:
        """A stored call; None if the call has yet to be made."""
        kept = known.get(instance.label)
        if kept is None or not isinstance(kept.outcome, Call):
            return None
        # Another study's pictures may be stored elsewhere.
        picture_id = kept.outcome.picture if kept.is_own else None
        call = kept.outcome.model_copy(update={"picture": picture_id, "kept": True})
        return _Measured(call, self._visuals.of_kept_call(instance, picture_id))

    def _call(
        self,
        trial: optuna.Trial,
        watch: Watch,
        recipe: Values,
        plans: Plans,
        instances: Sequence[Instance],
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
        planned = [plans[i.label] for i in instances] if plans else None
        calls = measure(
            self.method,
            self.problem,
            recipe,
            instances,
            # At twice the reference machine's speed a call makes twice the steps, so it is longer.
            max([self.config.limit_s, *(plan.full_speed_s for plan in planned or ())]),
            on_step,
            steps=[plan.steps for plan in planned] if planned else None,
        )
        if planned and self._clock is not None:
            self._pace.add(planned, [called.seconds for called in calls], self._clock.name)
        for instance, called, curve in zip(instances, calls, curves, strict=True):
            picture = self._visuals.of_call(instance, called.model)
            found = called.evaluation
            call = Call(
                instance=instance.label,
                loss=found.loss,
                standard_error=finite(found.standard_error),
                seconds=called.seconds,
                steps=called.steps,
                steps_wanted=called.steps_wanted,
                curve=curve.means(),
                per_t_bin=tuple(_short(loss) for loss in found.by_t),
                picture=picture.id if picture else None,
                cost=finite(found.cost),
            )
            if called.output:  # a field that is set is stored
                call = call.model_copy(update={"output": called.output})
            row = None
            if self._kept is not None and self._kept.is_on:
                row = self._kept.row(
                    recipe, instance, call, trial.number, mark_of(plans.get(instance.label))
                )
            yield _Measured(call, picture, row)


def _check_queued(trial: optuna.Trial, space: Mapping[str, Parameter]) -> None:
    """Check a queued trial's parameters: another program may have queued unknown ones.

    Raises:
        InvalidValuesError: the space can't sample them.
    """
    try:
        queued = trial._cached_frozen_trial.system_attrs.get(FIXED_PARAMS_KEY)
        check_queued(queued or {}, space)
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidValuesError(f"queued parameters: {error}") from error


def _longest_s(plans: Plans) -> float:
    return max((plan.seconds for plan in plans.values()), default=0.0)


def _short(loss: float) -> float | None:
    """A rounded loss to store; None for a bin without any t."""
    return float(f"{loss:.{_DIGITS}g}") if math.isfinite(loss) else None
