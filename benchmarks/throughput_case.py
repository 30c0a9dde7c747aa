"""What `benchmarks.throughput` times: a contender's trials, each worker in a fresh process."""

from __future__ import annotations

import math
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from finetune.augment.mix import Augmenter
from finetune.challenge import set_seed
from finetune.data.runes import NEW_LABEL
from finetune.flow import image_losses
from finetune.machine.device import resolve_precision, training_device
from finetune.model.checkpoints import load_network
from finetune.model.groups import with_mean_class
from finetune.recipe import Recipe
from finetune.scoring.estimators import AUTHOR_TIMES, LossEstimate, NoiseTable, estimate
from finetune.side_by_side import Task, adapt_together

from .flops import synchronize

Contender = Literal["naive", "ours"]
OnStep = Callable[[int], bool]  # told how many images a step had; true: end the call here
NAIVE_BATCH = 10
_NAIVE_LR = 5e-5  # as reference A of `benchmarks.references`
_MEET_S = 600.0  # for all workers to be there
_MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A contender, and what each of its workers does."""

    contender: Contender
    workers: int
    threads: int | None  # of each worker; None: torch's default
    recipes: tuple[Recipe, ...]  # of a worker's trials, in this order
    network: Path
    train: NDArray[np.float32]  # (10, 1, 28, 28), as `test`
    test: NDArray[np.float32]
    passes: int  # of the author's validation; 0: nobody evaluates
    table: NoiseTable  # of our estimate
    together: int = 1  # calls of ours that go side by side, each with a seed of its own

    @property
    def label(self) -> str:
        """What people read."""
        if self.contender == "naive":
            return "naive"
        s = "" if self.workers == 1 else "s"
        beside = "" if self.together == 1 else f", {self.together} side by side"
        return f"ours, {self.workers} worker{s}{beside}"


@dataclass(frozen=True)
class Trial:
    """Calls side by side and their evaluation; NaN and 0: nothing was evaluated."""

    calls: int
    images: int  # that training saw, of all calls
    marks: tuple[float, ...]  # seconds from the start of the calls to the end of each step
    train_s: float  # the whole calls
    eval_s: float
    evaluations: int
    loss: float
    standard_error: float


@dataclass(frozen=True)
class Worked:
    """One worker's trials, all of them run while every other worker ran trials too."""

    trials: tuple[Trial, ...]
    threads: int
    precision: str  # of the steps
    peak_mib: float  # of the process
    gpu_peak_mib: float


class OneByOne(Dataset[Tensor]):
    """``n`` augmented drawings (1, 28, 28), each drawn when it is asked for, alone."""

    def __init__(self, drawings: Tensor, recipe: Recipe, n: int) -> None:
        self._n = n
        self._augment = Augmenter(drawings, recipe, torch.Generator().manual_seed(recipe.seed))

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> Tensor:
        return self._augment(1)[0]


def naive_call(
    pretrained: nn.Module, drawings: Tensor, recipe: Recipe, on_step: OnStep
) -> nn.Module:
    """Plain training in batches of ten on as many images as ``recipe`` has in its own batches."""
    set_seed(recipe.seed)
    device = training_device(torch.device("cpu"))
    model = with_mean_class(pretrained).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_NAIVE_LR)
    n_images = recipe.steps * recipe.batch_size
    loader = DataLoader(OneByOne(drawings, recipe, n_images), NAIVE_BATCH, num_workers=0)
    losses = []
    for batch in loader:
        x = batch.to(device)
        t, e = torch.rand(len(x), 1, 1, 1, device=device), torch.randn_like(x)
        c = torch.full((len(x),), NEW_LABEL, device=device)
        loss = image_losses(model, x, e, t, c).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if on_step(len(x)):
            break
    return model.eval()


def naive_evaluation(model: nn.Module, test: Tensor, passes: int) -> LossEstimate:
    """The author's validation as its text reads: pass after pass, one batch at a time."""
    device = next(model.parameters()).device
    x, means = test.to(device), []
    c = torch.full((len(x),), NEW_LABEL, device=device)
    with torch.no_grad():
        for _ in range(passes):
            t = torch.randint(0, AUTHOR_TIMES, (len(x), 1, 1, 1), device=device) / AUTHOR_TIMES
            means.append(image_losses(model, x, torch.randn_like(x), t, c).mean().item())
    error = statistics.stdev(means) / math.sqrt(passes)
    return LossEstimate(statistics.fmean(means), error, passes * len(x))


def ours_calls(
    pretrained: nn.Module, drawings: Tensor, recipe: Recipe, n: int, on_step: OnStep
) -> list[nn.Module]:
    """The call that trials of a study make, ``n`` of them side by side."""
    tasks = [Task(pretrained, drawings, replace(recipe, seed=recipe.seed + k)) for k in range(n)]
    adapted = adapt_together(tasks, lambda *_: on_step(recipe.batch_size))
    return [a.model for a in adapted]


def run_trial(case: Case, recipe: Recipe, pretrained: nn.Module, on_step: OnStep) -> Trial:
    """Adapt and evaluate, as the case says."""
    device = training_device(torch.device("cpu"))
    drawings, test = torch.from_numpy(case.train), torch.from_numpy(case.test)
    marks: list[float] = []
    images = 0
    naive = case.contender == "naive"

    def mark(n: int) -> bool:  # the step's loss has been read, so a GPU has done it
        nonlocal images
        marks.append(time.perf_counter() - start)
        images += n
        return on_step(n)

    start = time.perf_counter()
    if naive:
        models = [naive_call(pretrained, drawings, recipe, mark)]
    else:
        models = ours_calls(pretrained, drawings, recipe, case.together, mark)
    synchronize(device)
    trained = time.perf_counter()
    if not case.passes:
        losses = [LossEstimate(math.nan, math.nan, 0)]
    elif naive:
        losses = [naive_evaluation(model, test, case.passes) for model in models]
    else:
        # Where it was trained, as a trial does it.
        losses = [estimate(m.to(device), test, NEW_LABEL, case.table) for m in models]
    return Trial(
        calls=len(models),
        images=images,
        marks=tuple(marks),
        train_s=trained - start,
        eval_s=time.perf_counter() - trained,
        evaluations=sum(each.n_evaluations for each in losses),
        loss=statistics.fmean(each.mean for each in losses),
        standard_error=statistics.fmean(each.standard_error for each in losses),
    )


def measure(case: Case) -> list[Worked]:
    """Run a case's workers side by side; returns what each of them did."""
    spawn = multiprocessing.get_context("spawn")
    shared = (spawn.Barrier(case.workers), spawn.Value("i", case.workers))
    with ProcessPoolExecutor(
        case.workers, mp_context=spawn, initializer=_become, initargs=shared
    ) as pool:
        # Each worker waits for all others, and so gets exactly one of these.
        futures = [pool.submit(_work, case) for _ in range(case.workers)]
        return [future.result() for future in futures]


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The value of a call that leaves no trace here and finds none."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as alone:
        return alone.submit(function, *arguments).result()


# Of a worker's process.
_meeting: Barrier
_unfinished: Synchronized[int]  # workers that have trials to do


def _become(meeting: Barrier, unfinished: Synchronized[int]) -> None:
    global _meeting, _unfinished
    _meeting, _unfinished = meeting, unfinished


def _work(case: Case) -> Worked:
    try:
        if case.threads is not None:
            torch.set_num_threads(case.threads)
        pretrained = load_network(case.network)
    except BaseException:
        _meeting.abort()  # nobody shall wait for this one
        raise
    is_first = _meeting.wait(_MEET_S) == 0
    trials = []
    try:
        for recipe in case.recipes:
            n = recipe.steps * recipe.batch_size
            with tqdm(
                total=n,
                desc=case.label,
                unit="image",
                leave=False,
                position=1,
                disable=not is_first,
            ) as bar:

                def show(n: int, bar: Any = bar) -> bool:
                    bar.update(n)
                    return False

                trials.append(run_trial(case, recipe, pretrained, show))
    finally:
        with _unfinished.get_lock():
            _unfinished.value -= 1
    peak_mib, gpu_peak_mib = _peaks_mib()
    # The others' trials are to run beside as many as these did.
    idle = replace(case, passes=0)
    while _unfinished.value:
        run_trial(idle, case.recipes[-1], pretrained, lambda _: not _unfinished.value)
    asked = "fp32" if case.contender == "naive" else case.recipes[0].precision
    precision = resolve_precision(asked, training_device(torch.device("cpu")))
    return Worked(tuple(trials), torch.get_num_threads(), precision, peak_mib, gpu_peak_mib)


def _peaks_mib() -> tuple[float, float]:
    """This process's largest size so far, in memory and on its GPU."""
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's ru_maxrss has the parent's size in it, if that was larger as this one began.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / _MIB, gpu / _MIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB, gpu / _MIB
