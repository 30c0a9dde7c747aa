"""A worker's heartbeat: it shows that its trial is running, and finds trials of lost workers."""

from __future__ import annotations

import threading
import time

from optuna.trial import TrialState

from ..process.logging import info, warn
from ..storage import recovery as stored
from ..storage.errors import driver_message
from ..storage.rdb import StudyStorage
from ..study.config import Recovery


class Heartbeat:
    """A thread that writes heartbeats for the worker's trial and requeues trials of lost workers.

    A worker is lost when its last heartbeat is older than the grace period by the database's
    clock *and* this thread has seen it unchanged for two intervals of its own.  The second
    condition is needed because all heartbeats are old after a database was away, a machine slept
    or a clock was set.  Live workers then write a new one within an interval.

    Errors of the database end neither the thread nor the trial; the next heartbeat tries again.

    Args:
        storage: writes in this worker's name.
        study_id: the study whose trials are watched.
        recovery: intervals, grace period and retries.
    """

    def __init__(self, storage: StudyStorage, study_id: int, recovery: Recovery) -> None:
        self.storage = storage
        self.study_id = study_id
        self.recovery = recovery
        self.trial_id: int | None = None  # trial to write heartbeats for
        self.lost = threading.Event()  # set when the trial belongs to another worker
        self._following = threading.Lock()
        self._stop = threading.Event()
        # By trial: its last heartbeat, and since when that has been unchanged.
        self._seen: dict[int, tuple[stored.Heartbeat, float]] = {}
        self._is_failing = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # A daemon thread, so that a database that does not answer can't delay the exit.
        self._thread.join(timeout=1.0)

    def follow(self, trial_id: int | None) -> None:
        """Write heartbeats for this trial from now on; None: for none."""
        with self._following:
            self.lost.clear()
            self.trial_id = trial_id

    def _run(self) -> None:
        while not self._stop.wait(self.recovery.heartbeat_s):
            try:
                self._write()
                self._reclaim_lost()
            except Exception as error:  # any: without this thread the trial would count as lost
                self._seen.clear()  # nothing was read, so nothing is known to be unchanged
                if not self._is_failing:
                    warn(f"no heartbeat: {driver_message(error)}; trying again")
                self._is_failing = True
            else:
                self._is_failing = False

    def _write(self) -> None:
        trial_id = self.trial_id
        if trial_id is None or self.storage.beat(trial_id):
            return
        with self._following:
            # Meanwhile the worker may have ended that trial and begun the next one.
            if self.trial_id == trial_id:
                self.lost.set()

    def _reclaim_lost(self) -> None:
        now = time.monotonic()
        before, self._seen = self._seen, {}
        for beat in self.storage.heartbeats(self.study_id):
            if beat.trial_id == self.trial_id:
                continue
            earlier, since = before.get(beat.trial_id, (None, now))
            if earlier is None or (earlier.at, earlier.worker) != (beat.at, beat.worker):
                since = now
            self._seen[beat.trial_id] = beat, since
            is_old = beat.age_s > self.recovery.grace_s
            if is_old and now - since >= 2 * self.recovery.heartbeat_s:
                self._reclaim(beat)

    def _reclaim(self, beat: stored.Heartbeat) -> None:
        state = self.storage.reclaim(beat, self.recovery.retries)
        if state == TrialState.WAITING:
            info(
                f"trial {beat.number}: its worker {beat.worker} is lost "
                f"(silent for {beat.age_s:.0f} s); queued again"
            )
        elif state == TrialState.FAIL:
            warn(f"trial {beat.number}: lost worker {beat.worker}, once too often; failed")
