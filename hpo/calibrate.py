"""Time short calls on this machine and write its profile, for studies to name as reference."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import option, parse
from .errors import UserError, check_out, run_command, write_whole
from .process.devices import choose_device, describe_processor, machine_memory_gb, n_cores
from .process.logging import info, no_bars, start_log
from .process.signals import StopError, acknowledge_stop, raise_on_signals

# Torch takes seconds to import; `--help` needs none of it.
if TYPE_CHECKING:
    from .clock.fit import Timing
    from .problem.base import Method, Workload

_PRECISIONS = ("auto", "fp32", "bf16")
_METHOD = "recipe"  # whose calls are timed


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """What is timed, and where the profile goes."""

    out: Path = option("file of the profile, such as studies/machines/NAME.toml", metavar="FILE")
    about: str = option("a sentence for people about the machine", "", metavar="TEXT")
    space: str = option(
        "study file of whose space random recipes check the model", "runes", metavar="STUDY"
    )
    recipes: int = option("recipes to fit the model to", 72, least=32, metavar="N")
    check: int = option("random recipes to check it on", 24, least=4, metavar="N")
    precision: str = option("number format of a step", "auto", choices=_PRECISIONS)
    timings: Path | None = option(
        "file that keeps each timing as a line of JSON; those in it are not made again",
        None,
        metavar="FILE",
    )
    device: str | None = option(
        "cpu, cuda or cuda:N (default: a GPU if there is one)", None, variable=True
    )
    force: bool = option("overwrite the profile", False)


def main(argv: Sequence[str] | None = None) -> int:
    epilog = (
        "Other programs slow calls down, and the profile would say that the machine is slow: let "
        "nothing else run."
    )
    options = parse(CalibrateOptions, argv, "calibrate", __doc__, epilog)
    raise_on_signals()
    start_log("calibrate")
    try:
        return _run(options)
    except StopError as stop:
        acknowledge_stop()
        kept = f"; {options.timings} keeps what was timed" if options.timings else ""
        info(f"stopped by {stop}; no profile is written{kept}")
        return stop.exit_code


def _run(options: CalibrateOptions) -> int:
    if options.out.exists() and not options.force:
        raise UserError(f"{options.out} is there; write --force to overwrite it")
    check_out(options.out)
    choose_device(options.device)
    from .clock.fit import check, fit
    from .clock.profile import Profile
    from .problem.calibration import precision_here
    from .study.config import load_study_file
    from .study.space import random_values

    config = load_study_file(options.space)
    method = config.load_method()
    if config.method.name != _METHOD:
        raise UserError(f"study {options.space} is of another method; --space names one of recipes")
    method.prepare(options.device, n_cores())
    precision = precision_here(options.precision)
    fixed = {**config.fixed, "precision": options.precision}
    to_check_on = random_values(config.space, fixed, method, options.check, seed=0)
    asked = [*_to_fit(options.recipes, options.precision), *to_check_on]
    timings = list(_timings(method, asked, _Kept(options.timings, precision)))
    to_fit = [t for t in timings[: options.recipes] if t is not None]
    to_check = [t for t in timings[options.recipes :] if t is not None]
    profile = Profile(
        about=options.about,
        machine=_describe(method.machine()),
        method=_METHOD,
        precision=precision,
        startup=fit([t.work.startup for t in to_fit], [t.startup_s for t in to_fit]),
        step=fit([t.work.step for t in to_fit], [t.step_s for t in to_fit]),
    )
    found = check(profile, to_check)
    profile = profile.model_copy(update={"check": found})
    write_whole(options.out, profile.to_toml().encode())
    print(
        f"{options.out}: profile {profile.digest}, {len(to_fit)} recipes timed in {precision}\n"
        f"on {found.recipes} others predictions are off by (median, largest): "
        f"{found.step_median_error:.1%}, {found.step_largest_error:.1%} for a step, "
        f"{found.startup_median_error:.1%}, {found.startup_largest_error:.1%} for the start"
    )
    return 0


def _to_fit(n: int, precision: str) -> list[dict[str, Any]]:
    from .problem.calibration import calibration_values

    return calibration_values(n, precision)


class _Kept:
    """Timings in a file, by what was done; without a file none are kept."""

    def __init__(self, path: Path | None, precision: str) -> None:
        self._path, self._precision = path, precision
        self._known: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                try:
                    row = json.loads(line)
                    self._known[row["key"]] = row
                except (ValueError, TypeError, KeyError) as error:
                    raise UserError(f"{path}:{number} is no timing; remove the line") from error

    def read(self, work: Workload, key: str) -> Timing | None:
        from .clock.fit import Timing

        row = self._known.get(f"{self._precision} {key}")
        return None if row is None else Timing(work, row["startup_s"], row["step_s"])

    def write(self, timing: Timing, key: str) -> None:
        if self._path is None:
            return
        row = {"key": f"{self._precision} {key}", **asdict(timing)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _timings(
    method: Method, asked: Sequence[dict[str, Any]], kept: _Kept
) -> Iterator[Timing | None]:
    from tqdm import tqdm

    from .clock.timing import time_call
    from .problem.base import digest_of
    from .problem.calibration import calibration_instance, steps_to_time

    # The first call of a process is slower: torch's kernels are loaded.
    time_call(method, asked[0], calibration_instance(0), 4)
    for number, values in enumerate(
        tqdm(asked, unit="call", disable=no_bars(), dynamic_ncols=True)
    ):
        instance = calibration_instance(number)
        key = f"{digest_of(values)} {instance.label} {len(instance.split.train)}"
        work = method.workload(values, instance)
        timing = kept.read(work, key) if work else None
        if timing is None:
            timing = time_call(method, values, instance, steps_to_time(values))
            if timing is not None:
                kept.write(timing, key)
        yield timing


def _describe(machine: dict[str, object]) -> dict[str, str]:
    return {
        "processor": describe_processor(),
        "cores": str(n_cores()),
        "memory_gib": f"{machine_memory_gb():.1f}",
        **{key: str(value) for key, value in machine.items() if key != "threads"},
    }


if __name__ == "__main__":
    run_command(main)
