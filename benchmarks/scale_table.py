"""What `benchmarks.scale` found: rows, a table, and on paper what more workers would need."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .scale_player import OPERATIONS, Played
from .scale_server import Counters, Looks

Row = dict[str, Any]
_RESAMPLES = 200


def make_row(
    played: Played, before: Counters, after: Counters, looks: Looks, seconds: float
) -> Row:
    """Figures of one case, over the ``seconds`` between two moments; null: nothing was seen."""
    counted = {k: after.of_database[k] - before.of_database[k] for k in after.of_database}
    done = played.finished
    return {
        "trials": done,
        "trials_per_s": round(done / seconds, 4),
        "commits_per_s": round(counted["xact_commit"] / seconds, 2),
        "rollbacks": counted["xact_rollback"],
        "deadlocks": counted["deadlocks"],
        "rows_read_per_s": round(counted["tup_returned"] / seconds),
        "rows_written_per_s": round(
            (counted["tup_inserted"] + counted["tup_updated"]) / seconds, 1
        ),
        "wal_kib_per_s": round((after.wal_bytes - before.wal_bytes) / seconds / 1024, 1),
        "server_cpu_s": round(after.cpu_s - before.cpu_s, 2),
        "server_cpu_share": round((after.cpu_s - before.cpu_s) / seconds, 4),
        "players_cpu_share": round(played.cpu_s / seconds, 4),
        "others_trials_read": played.trials_read,
        "database_mib": round(after.size_bytes / 2**20, 1),
        "tables_mib": {k: round(v / 2**20, 1) for k, v in sorted(after.sizes.items()) if v > 2**20},
        "operations": {o: _times(played.took_s[o]) for o in OPERATIONS},
        "locks": looks.summary(),
        "errors": dict(played.errors),
    }


def _times(seconds: Sequence[float]) -> Row:
    """How often, and the median, its standard error and the 99th percentile, in ms."""
    if not seconds:
        return {"n": 0, "median_ms": None, "error_ms": None, "p99_ms": None}
    rng = random.Random(0)
    some = seconds if len(seconds) <= 2000 else rng.sample(list(seconds), 2000)
    medians = [statistics.median(rng.choices(some, k=len(some))) for _ in range(_RESAMPLES)]
    # Of all, where only some were resampled.
    error = statistics.stdev(medians) * math.sqrt(len(some) / len(seconds))
    p99 = sorted(seconds)[math.ceil(0.99 * len(seconds)) - 1]
    return {
        "n": len(seconds),
        "median_ms": round(1e3 * statistics.median(seconds), 2),
        "error_ms": round(1e3 * error, 2) if len(seconds) > 1 else None,
        "p99_ms": round(1e3 * p99, 2),
    }


@dataclass(frozen=True)
class Estimate:
    """What some workers would ask of a server, from what other numbers of them did."""

    workers: int
    trials_per_s: float
    server_cores: float
    lock_share: float  # of the time, in which somebody holds the study's lock
    connections: int
    lock_wait_ms: float | None  # mean wait for the lock; null: the queue never ends


def estimate(rows: Sequence[Row], workers: int) -> Estimate | None:
    """On paper; null without a case of one worker and two others of one kind.

    The server's CPU is a + b W + c W^2 (W workers): each worker's own writes and its signs of
    life are alike for all (b), but each reads every other's (c).  Claims queue for the study's
    lock as in M/M/1, whose service time is that of a claim when one worker is alone, which has
    the journeys of the client in it.
    """
    alone = [r for r in rows if r["workers"] == 1 and r["operations"]["claim"]["n"]]
    many = sorted((r for r in rows if r["workers"] > 1), key=lambda r: r["workers"])
    if not alone or len({r["workers"] for r in many}) < 2 or not _alike([*alone, *many]):
        return None
    b, c = _fit([(r["workers"], r["server_cpu_share"] / r["compress"]) for r in many])
    # At the pace at which trials end when nobody waits.
    rate = workers * alone[0]["trial_rate_per_worker"]
    service_s = statistics.fmean(r["operations"]["claim"]["median_ms"] for r in alone) / 1e3
    share = rate * service_s
    wait_ms = 1e3 * service_s * share / (1 - share) if share < 1 else None
    return Estimate(workers, rate, b * workers + c * workers**2, share, 2 * workers, wait_ms)


def _alike(rows: Sequence[Row]) -> bool:
    return len({(r["stored"], r["call_s"], r["label"]) for r in rows}) == 1


def _fit(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Least squares of y = b x + c x^2, relative to y, neither below 0."""
    s11 = s12 = s22 = t1 = t2 = 0.0
    for x, y in points:
        p, q = x / y, x * x / y
        s11, s12, s22, t1, t2 = s11 + p * p, s12 + p * q, s22 + q * q, t1 + p, t2 + q
    determinant = s11 * s22 - s12 * s12
    b, c = (t1 * s22 - t2 * s12) / determinant, (t2 * s11 - t1 * s12) / determinant
    if c < 0:
        return t1 / s11, 0.0
    if b < 0:
        return 0.0, t2 / s22
    return b, c


def to_text(rows: Sequence[Row]) -> str:
    """A table of the cases, what went wrong in them, and estimates for more workers."""
    lines = [_line(_HEAD), *(_line(_cells(row)) for row in rows)]
    lines += ["", _line(("ms (median, p99)", "workers", *OPERATIONS))]
    for row in rows:
        lines.append(_line((row["label"], row["workers"], *map(_pair, row["operations"].values()))))
    for row in rows:
        for error, n in {**row["errors"], **row["errors_at_the_end"]}.items():
            lines.append(f"{row['workers']} workers, {n} times: {error}")
        lines += [f"{row['workers']} workers, a trial failed: {f}" for f in row["failures"]]
        if row["not_handed_back"]:
            lines.append(f"{row['workers']} workers, not handed back: {row['not_handed_back']}")
    for group in _groups(rows):
        found = [e for workers in (500, 2000, 10_000) if (e := estimate(group, workers))]
        lines += ["", *map(_words, found)] if found else []
    return "\n".join(lines)


_HEAD = (
    *("", "workers", "stored", "compress", "trials/s", "commits/s", "rows read/s", "server cores"),
    *("waiting", "most", "longest s", "connections", "size MiB", "load"),
)


def _cells(row: Row) -> Sequence[object]:
    locks = row["locks"]
    return (
        *(row["label"], row["workers"], row["stored"], f"{row['compress']:g}"),
        *(f"{row['trials_per_s']:.2f}", f"{row['commits_per_s']:.0f}", row["rows_read_per_s"]),
        *(f"{row['server_cpu_share']:.3f}", locks["waiting_mean"], locks["waiting_most"]),
        *(locks["longest_wait_s"], locks["connections_most"], row["database_mib"]),
        row["load_average"],
    )


def _line(cells: Sequence[object]) -> str:
    return "".join(f"{cell!s:>16}" for cell in cells)


def _pair(times: Mapping[str, Any]) -> str:
    return "-" if not times["n"] else f"{times['median_ms']:.1f}, {times['p99_ms']:.0f}"


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[object, list[Row]] = {}
    for row in rows:
        kind = row["stored"], row["call_s"], row["label"]
        groups.setdefault(kind, []).append(row)
    return list(groups.values())


def _words(found: Estimate) -> str:
    wait = "without end" if found.lock_wait_ms is None else f"{found.lock_wait_ms:.1f} ms"
    return (
        f"on paper, {found.workers} workers: {found.trials_per_s:.1f} trials/s, "
        f"{found.server_cores:.1f} cores of the server, the study's lock held "
        f"{found.lock_share:.1%} of the time, a wait for it of {wait}, "
        f"{found.connections} connections"
    )
