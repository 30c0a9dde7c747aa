"""What a PostgreSQL server does while `benchmarks.scale` plays: its counters, and who waits."""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from .postgres import Postgres

_EVERY_S = 0.5
_COUNTERS = (
    *("xact_commit", "xact_rollback", "tup_returned", "tup_fetched"),
    *("tup_inserted", "tup_updated", "deadlocks"),
)
_ACTIVITY = """
SELECT count(*),
       count(*) FILTER (WHERE state = 'active'),
       count(*) FILTER (WHERE wait_event_type = 'Lock'),
       count(*) FILTER (WHERE wait_event_type = 'LWLock'),
       count(*) FILTER (WHERE wait_event_type = 'IO'),
       coalesce(max(extract(epoch FROM clock_timestamp() - query_start))
                FILTER (WHERE wait_event_type = 'Lock'), 0)
FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@dataclass(frozen=True)
class Counters:
    """What a server has done since it started."""

    of_database: dict[str, int]  # of pg_stat_database
    wal_bytes: int
    cpu_s: float  # of all its processes
    size_bytes: int  # of the database on disk, without its log
    sizes: dict[str, int]  # of tables with their indexes


@dataclass
class Looks:
    """What repeated looks at its connections saw; each list has a number a look."""

    connections: list[int] = field(default_factory=list)
    active: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)  # for a lock of a row or a transaction
    waiting_inside: list[int] = field(default_factory=list)  # for a lock of the server's own
    waiting_io: list[int] = field(default_factory=list)
    longest_wait_s: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Means and greatest numbers; nulls without any look."""
        names = ("connections", "active", "waiting", "waiting_inside", "waiting_io")
        found: dict[str, Any] = {}
        for name in names:
            seen = getattr(self, name)
            found[f"{name}_mean"] = round(statistics.fmean(seen), 2) if seen else None
            found[f"{name}_most"] = max(seen, default=None)
        return {**found, "looks": len(self.active), "longest_wait_s": round(self.longest_wait_s, 3)}


class Observer:
    """Looks at a server's connections in a thread, and reads its counters when asked."""

    def __init__(self, server: Postgres, url: sa.URL) -> None:
        self._server = server
        self._engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", pool_size=2)
        self._looks = Looks()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._engine.dispose()

    def _run(self) -> None:
        with self._engine.connect() as c:
            while not self._stop.wait(_EVERY_S):
                row = c.exec_driver_sql(_ACTIVITY).one()
                with self._lock:
                    looks = self._looks
                    for seen, number in zip(_lists(looks), row, strict=False):
                        seen.append(int(number))
                    looks.longest_wait_s = max(looks.longest_wait_s, float(row[5]))

    def turn(self) -> Looks:
        """What was seen since the last turn."""
        with self._lock:
            looks, self._looks = self._looks, Looks()
        return looks

    def counters(self) -> Counters:
        """The server's counters at this moment."""
        names = ", ".join(_COUNTERS)
        with self._engine.connect() as c:
            row = c.exec_driver_sql(
                f"SELECT {names} FROM pg_stat_database WHERE datname = current_database()"
            ).one()
            wal = c.exec_driver_sql("SELECT wal_bytes FROM pg_stat_wal").scalar_one()
            size = c.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one()
            tables = c.exec_driver_sql(
                "SELECT relname, pg_total_relation_size(relid) FROM pg_stat_user_tables"
            )
            sizes = {name: int(n) for name, n in tables}
        counted = dict(zip(_COUNTERS, map(int, row), strict=True))
        return Counters(counted, int(wal), cpu_seconds(self._server), int(size), sizes)


def _lists(looks: Looks) -> Sequence[list[int]]:
    return (
        looks.connections,
        looks.active,
        looks.waiting,
        looks.waiting_inside,
        looks.waiting_io,
    )


def cpu_seconds(server: Postgres) -> float:
    """Of the server's processes, those that have ended among them."""
    parent = int((server.directory / "data" / "postmaster.pid").read_text().split()[0])
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # What follows the name, which may have spaces: state, parent, ...
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        is_parent = stat.parent.name == str(parent)
        if is_parent or fields[1] == str(parent):
            ticks += int(fields[11]) + int(fields[12])
        if is_parent:
            ticks += int(fields[13]) + int(fields[14])  # of children that were waited for
    return ticks / os.sysconf("SC_CLK_TCK")
