"""The loop of a worker: claim a trial, run it, store how it ended, until the budget is spent."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import TrialState

from ..errors import UserError
from ..formatting import counted, with_error
from ..process.logging import info, warn
from ..process.signals import acknowledge_stop, raise_if_stopped
from ..pruners.promotion import Promotion
from ..storage.errors import StudyGoneError, TrialTakenError
from ..storage.optuna_internals import id_of
from ..storage.rdb import StudyStorage
from ..storage.tables import FINISHED
from ..storage.transactions import NoTrial
from ..study.budget import Spent, why_stop
from ..study.config import Budget, Recovery
from ..study.workers import End, WorkerEntry, join_now
from ..trial.outcome import Ending, Outcome, ending_of
from ..trial.ranking import FAILED, OVER_COST, OVER_LIMIT, best_trials
from ..trial.record import TrialRecord, read_trial, write_trial
from .callbacks import AfterTrial, TrialEnded, call_back
from .controls import Controls, StudyStoppedError
from .display import Display
from .heartbeat import Heartbeat

_FIRST_POLL_S = 0.5
_LONGEST_POLL_S = 5.0
_RELEASE_S = 4.0  # time limit for releasing the trial at the end
_WORSE_THAN_SLOW = 1000.0  # constraint of a failure; that of a slow trial is its seconds too many
_END_OF = {"trials": End.FINISHED, "seconds": End.LIMIT}  # by the part of the budget


@dataclass(frozen=True)
class Watch:
    """What a running trial needs of its worker."""

    storage: StudyStorage
    heartbeat: Heartbeat
    display: Display
    controls: Controls | None = None

    def check(self) -> None:
        """To be called often.

        Raises:
            TrialTakenError: the running trial belongs to another worker now.
            StopError: the process was asked to stop.
        """
        raise_if_stopped()
        if self.heartbeat.lost.is_set():
            raise TrialTakenError("the trial was ended or taken over by someone else")

    def between_calls(self) -> None:
        """To be called before each call: waits while the study is paused.

        Raises:
            StudyStoppedError: somebody asked the workers to stop.
            TrialTakenError, StopError: as in `check`.
        """
        self.check()
        if self.controls is not None:
            self.controls.obey(self.check, self.display.show_trial, now=False)


Run = Callable[[optuna.Trial, Watch], float]
MakePlot = Callable[[optuna.Trial], Mapping[str, Any]]


def _plot_nothing(trial: optuna.Trial) -> Mapping[str, Any]:
    return {}


class WorkerFailedError(Exception):
    """Too many trials in a row failed, and their recipes are not the cause."""


@dataclass
class Loop:
    """Runs trials of a study, one after another.

    Args:
        run: the objective; runs a trial and returns its value.
        feasible_s: time limit of a call. A trial with a longer call is infeasible, by its attribute
            ``predicted_s`` under a reference clock, and else by ``longest_call_s``.
        feasible_cost: limit of the attribute ``cost``; None: no limit.
        plot: makes and stores the plot of a trial that ends; returns system attributes for it.
        promotion: chooses the recipes that go on from looks to the target speed.
        forget: called when a person has changed a finished trial.
        after_trial: called with each trial that has ended here.
    """

    study: optuna.Study
    storage: StudyStorage
    run: Run
    budget: Budget
    recovery: Recovery
    display: Display
    feasible_s: float = float("inf")
    feasible_cost: float | None = None
    plot: MakePlot = _plot_nothing
    promotion: Promotion | None = None
    forget: Callable[[], None] = lambda: None
    after_trial: AfterTrial | None = None
    _poll_s: float = field(init=False, default=_FIRST_POLL_S)
    _entry: WorkerEntry = field(init=False, default_factory=WorkerEntry)

    def __post_init__(self) -> None:
        self._id = self.study._study_id
        self._controls = Controls(self.storage, self._id, self.forget)
        self._budget = self.budget  # with changes made since the study began
        self._dropped: frozenset[int] = frozenset()

    def work(self) -> str:
        """Run trials until the budget is spent or somebody stops the study; returns which it was.

        If anything else ends it, the running trial is queued again.

        Raises:
            WorkerFailedError: `Recovery.failures` trials in a row failed.
            UserError: the database stopped working, or the study was deleted.
        """
        self._entry = join_now(self.storage, self._id)
        with Heartbeat(self.storage, self._id, self.recovery) as heartbeat:
            try:
                spent = self._run_trials(heartbeat)
                self._leave(_END_OF.get(spent.part, End.BUDGET), str(spent))
                return str(spent)
            except StudyGoneError:
                raise  # there is no trial to release
            except StudyStoppedError as stopped:
                heartbeat.follow(None)
                self._leave(End.STOPPED, str(stopped))
                return str(stopped)
            except BaseException as error:
                acknowledge_stop()
                heartbeat.follow(None)
                self._leave(_end_by(error), str(error) or type(error).__name__)
                raise

    def _run_trials(self, heartbeat: Heartbeat) -> Spent:
        """Run trials until a part of the budget is spent; returns that part."""
        started = time.monotonic()
        failures = 0
        while True:
            raise_if_stopped()
            wishes = self._controls.obey(raise_if_stopped, self.display.show_trial, now=True)
            self._budget = wishes.apply(self.budget)
            self._dropped = wishes.dropped
            self.display.show_study(self._trials() if self.display.is_on else [])
            spent = why_stop(self._budget, time.monotonic() - started, self._trials)
            if spent is not None:
                return spent
            trial_id = self._claim(started)
            if trial_id is None:
                continue
            if isinstance(trial_id, NoTrial):
                return Spent("trials", f"{self._budget.trials} trials are finished")
            heartbeat.follow(trial_id)
            outcome = self._run_one(trial_id, self._watch(heartbeat))
            heartbeat.follow(None)
            failures = failures + 1 if outcome and outcome.is_workers_trouble else 0
            if failures >= self.recovery.failures:
                raise WorkerFailedError(
                    f"{failures} trials in a row failed, the last of {outcome}; "
                    "their attributes hold the reasons"
                )

    def _watch(self, heartbeat: Heartbeat) -> Watch:
        return Watch(self.storage, heartbeat, self.display, self._controls)

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=FINISHED)

    def _claim(self, started: float) -> int | NoTrial | None:
        """Claim a trial and return its id; None after a pause, if others may spend the budget."""
        if self.promotion is not None:
            promoted = self.promotion.next_parameters(self.study)
            if promoted is not None and self.storage.queue_once(self._id, promoted):
                info("the best recipe that waits goes on to the target speed")
        claimed = self.storage.claim(self._id, self._budget.trials)
        if claimed is not NoTrial.FULL:
            self._poll_s = _FIRST_POLL_S
            return claimed
        if self._poll_s == _FIRST_POLL_S:
            self._say_what_runs()
        # Ask seldom, and not all workers at the same moment.
        pause_s = self._poll_s * random.uniform(0.7, 1.0)
        if self._budget.seconds is not None:
            left_s = self._budget.seconds - (time.monotonic() - started)
            pause_s = max(0.0, min(pause_s, left_s))
        time.sleep(pause_s)
        self._poll_s = min(1.5 * self._poll_s, _LONGEST_POLL_S)
        return None

    def _say_what_runs(self) -> None:
        """Log the trials that this worker waits for, and those that may never end."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        beating = {
            b.trial_id for b in self.storage.retry.call(lambda: self.storage.heartbeats(self._id))
        }
        numbers = ", ".join(str(t.number) for t in running)
        info(f"waiting: the trials that run ({numbers}) will spend the budget, unless one is lost")
        for trial in running:
            if id_of(trial) not in beating:
                warn(
                    f"trial {trial.number} has no heartbeat: another program runs it, or left it "
                    f"so; if that is gone, end it by study.tell({trial.number}, "
                    "state=optuna.trial.TrialState.FAIL)"
                )

    def _run_one(self, trial_id: int, watch: Watch) -> Outcome | None:
        """Run a trial and store its end; None if somebody else has ended it."""
        # Fill the cache that samplers read, so that other workers' latest results count.
        # `Study.ask` empties it, and samplers would then read every running trial in full.
        known = [
            t for t in self.storage.trials_for_sampling(self._id) if t.number not in self._dropped
        ]
        self.study._thread_local.cached_all_trials = known
        started = time.monotonic()
        trial = optuna.Trial(self.study, trial_id)
        try:
            try:
                ending = Ending(Outcome.COMPLETE, value=float(self.run(trial, watch)))
            except (TrialTakenError, StudyStoppedError, UserError):
                raise
            except Exception as error:
                ending = ending_of(error)
            if ending.value != ending.value:  # NaN
                ending = Ending(Outcome.NOT_FINITE, "the mean loss is not a number")
            self._store(trial, ending)
        except TrialTakenError as error:
            warn(f"trial {trial.number}: {error}; going on with the next")
            return None
        seconds = time.monotonic() - started
        _tell(trial, ending, seconds)
        if self.after_trial is not None:
            call_back(self.after_trial, self._event(trial, ending, seconds))
        return ending.outcome

    def _event(self, trial: optuna.Trial, ending: Ending, seconds: float) -> TrialEnded:
        record = read_trial(trial)
        best = next(iter(best_trials(self._trials(), 1)), None)
        return TrialEnded(
            study=self.study.study_name,
            worker=self.storage.worker,
            number=trial.number,
            outcome=ending.outcome.value,
            reason=ending.reason or None,
            loss=ending.value,
            standard_error=record.standard_error,
            params=dict(trial.params),
            recipe=record.recipe,
            seconds=seconds,
            is_best=best is not None and best.number == trial.number,
        )

    def _store(self, trial: optuna.Trial, ending: Ending) -> None:
        state = ending.outcome.state
        value = ending.value
        if value is None and state == TrialState.PRUNED:
            # Without an estimate the value is the last report, as in Optuna.
            reports = trial._cached_frozen_trial.intermediate_values
            last = reports[max(reports)] if reports else None
            value = last if last == last else None
        values = None if value is None or state == TrialState.FAIL else [value]
        constraints = {}
        record = read_trial(trial)
        if record.limited_s is not None:
            constraints[OVER_LIMIT] = record.limited_s - self.feasible_s
        if record.cost is not None and self.feasible_cost is not None:
            constraints[OVER_COST] = record.cost - self.feasible_cost
        if ending.outcome.is_recipes_fault:
            constraints[FAILED] = _WORSE_THAN_SLOW
        frozen = trial._cached_frozen_trial
        self.study.sampler.after_trial(self.study, frozen, state, values)
        links = self.plot(trial)
        with self.storage.batch(trial._trial_id) as writes:
            write_trial(trial, TrialRecord.of_ending(ending, self.storage.worker))
            for key, excess in constraints.items():
                trial.set_constraint(key, excess)
            if constraints:
                # The dashboard reads only this older form.
                writes.system_attrs["constraints"] = list(constraints.values())
            writes.system_attrs.update(links)
            writes.state, writes.values = state, values

    def _leave(self, end: End, reason: str) -> None:
        """Release the running trial, if there is one, and store why this worker ends."""
        why = "stopped" if end in (End.STOPPED, End.INTERRUPTED) else "error"
        entry = self._entry.end(end, reason).to_json()
        try:
            for number in self.storage.release(self._id, why, _RELEASE_S, entry):
                info(f"trial {number}: queued again; any worker goes on with it")
        except Exception as error:
            if end in (End.FINISHED, End.BUDGET, End.LIMIT):  # between trials
                warn(f"why this worker ends could not be stored: {error}")
            else:
                warn(f"the trial could not be released, and will count as lost: {error}")


def _end_by(error: BaseException) -> End:
    if isinstance(error, KeyboardInterrupt):
        return End.INTERRUPTED
    return End.FAILED if isinstance(error, WorkerFailedError) else End.ERROR


def _tell(trial: optuna.Trial, ending: Ending, seconds: float) -> None:
    record = read_trial(trial)
    parts = [f"trial {trial.number}: {ending.outcome.value}"]
    if ending.value is not None:
        parts.append(f"loss {with_error(ending.value, record.standard_error)}")
    if ending.reason:
        parts.append(ending.reason)
    if n := len(record.instances):
        parts.append(counted(n, "call"))
    parts.append(f"{seconds:.1f} s")
    info(", ".join(parts))
