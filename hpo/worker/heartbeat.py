"""A worker's pulse: signs of life for its trial, and an eye on the others'."""

from __future__ import annotations

import threading
import time

from optuna.trial import TrialState

from ..process.logging import info, warn
from ..storage.errors import driver_message
from ..storage.rdb import StudyStorage
from ..storage.recovery import Heartbeat
from ..study.config import Recovery


class Pulse:
    """A thread that beats for the trial at hand and queues again those of lost workers.

    A worker is lost when its last beat is older than the grace period by the database's clock
    *and* this thread has seen it not move for two intervals of its own.  A database that was
    away, a machine that slept or a clock that was set make old beats too; nobody is called lost
    for these, because the living beat again before they are looked at twice.

    Errors of the database end neither the thread nor the trial: the next beat tries again.
    """

    def __init__(self, storage: StudyStorage, study_id: int, recovery: Recovery) -> None:
        self.storage = storage
        self.study_id = study_id
        self.recovery = recovery
        self.trial_id: int | None = None  # the trial to beat for
        self.lost = threading.Event()  # the trial at hand belongs to somebody else now
        self._attending = threading.Lock()
        self._stop = threading.Event()
        self._seen: dict[int, tuple[Heartbeat, float]] = {}  # since when each beat has not moved
        self._troubled = False
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # A daemon: a database that does not answer must not hold up the end.
        self._thread.join(timeout=1.0)

    def attend(self, trial_id: int | None) -> None:
        """Beat for this trial from now on; None: for none."""
        with self._attending:
            self.lost.clear()
            self.trial_id = trial_id

    def _run(self) -> None:
        while not self._stop.wait(self.recovery.heartbeat_s):
            try:
                self._beat()
                self._look()
            except Exception as e:  # whatever it is: without a pulse the trial would be lost
                self._seen.clear()  # who could not look has not seen anybody stand still
                if not self._troubled:
                    warn(f"no heartbeat: {driver_message(e)}; trying on")
                self._troubled = True
            else:
                self._troubled = False

    def _beat(self) -> None:
        trial_id = self.trial_id
        if trial_id is None or self.storage.beat(trial_id):
            return
        with self._attending:
            # Its worker may have ended it meanwhile, and may be at the next.
            if self.trial_id == trial_id:
                self.lost.set()

    def _look(self) -> None:
        now = time.monotonic()
        before, self._seen = self._seen, {}
        for beat in self.storage.heartbeats(self.study_id):
            if beat.trial_id == self.trial_id:
                continue
            earlier = before.get(beat.trial_id)
            moved = earlier is None or (earlier[0].at, earlier[0].worker) != (beat.at, beat.worker)
            since = now if moved or earlier is None else earlier[1]
            self._seen[beat.trial_id] = beat, since
            old = beat.age_s > self.recovery.grace_s
            if old and now - since >= 2 * self.recovery.heartbeat_s:
                self._take(beat)

    def _take(self, beat: Heartbeat) -> None:
        became = self.storage.reclaim(beat, self.recovery.retries)
        if became == TrialState.WAITING:
            info(
                f"trial {beat.number}: its worker {beat.worker} is lost "
                f"(silent for {beat.age_s:.0f} s); queued again"
            )
        elif became == TrialState.FAIL:
            warn(f"trial {beat.number}: lost worker {beat.worker}, once too often; failed")
