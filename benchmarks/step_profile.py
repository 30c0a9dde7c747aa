"""``python -m benchmarks.step_profile``: where a training step's time goes, operation by operation.

The same network on the same batch: as PyTorch has it, and with the narrow group norms of training
on a CPU (`finetune.model.norms`); both with channels last, in the precision that is asked for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import trange

from finetune.errors import UserError, run_command
from finetune.flow import VelocityModel, image_losses
from finetune.machine.device import autocast, channels_last, resolve_precision
from finetune.model.checkpoints import list_networks, load_network
from finetune.model.norms import speed_up_norms

CPU = torch.device("cpu")
_WARM_UP = 3


def step_of(call: VelocityModel, model: torch.nn.Module, n: int) -> Callable[[], None]:
    """A training step on one batch of ``n`` images: forward, backward, AdamW."""
    g = torch.Generator().manual_seed(0)
    x, e = torch.rand(n, 1, 28, 28, generator=g), torch.randn(n, 1, 28, 28, generator=g)
    t, c = torch.rand(n, 1, 1, 1, generator=g), torch.zeros(n, dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        loss = image_losses(call, x, e, t, c).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def contenders(precision: str, n: int) -> dict[str, Callable[[], None]]:
    """The steps that are compared, by name."""
    steps = {}
    for name in ("as PyTorch has it", "narrow norms"):
        model = channels_last(load_network(list_networks(None)[0]), CPU).train()
        if name == "narrow norms":
            speed_up_norms(model)

        def call(
            x: torch.Tensor, t: torch.Tensor, c: torch.Tensor, model: torch.nn.Module = model
        ) -> torch.Tensor:
            with autocast(CPU, precision):
                velocity: torch.Tensor = model(x, t, c)
            return velocity

        steps[name] = step_of(call, model, n)
    return steps


def operations(step: Callable[[], None], n_steps: int) -> dict[str, float]:
    """Milliseconds a step of each operation, without those that it calls, longest first."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(n_steps):
            step()
    found = {e.key: e.self_cpu_time_total / 1000 / n_steps for e in profiler.key_averages()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def milliseconds(step: Callable[[], None], n_steps: int) -> list[float]:
    """Wall clock of each step, without the profiler."""
    times = []
    for _ in trange(n_steps, desc="steps", leave=False):
        start = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - start))
    return times


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_profile", description=__doc__)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rows", type=int, default=10, help="operations that are listed")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    arguments = parser.parse_args(argv)
    if min(arguments.batch_size, arguments.steps, arguments.rows) < 1:
        raise UserError("--batch-size, --steps and --rows are 1 or more")
    precision = resolve_precision(arguments.precision, CPU)
    threads = torch.get_num_threads()
    print(f"{precision}, batches of {arguments.batch_size}, {threads} threads; ms a step")
    medians = {}
    for name, step in contenders(precision, arguments.batch_size).items():
        for _ in range(_WARM_UP):
            step()
        times = sorted(milliseconds(step, arguments.steps))
        medians[name] = times[len(times) // 2]
        print(
            f"\n{name}: median {medians[name]:.1f}, quartiles "
            f"{times[len(times) // 4]:.1f} to {times[3 * len(times) // 4]:.1f}"
        )
        for key, ms in list(operations(step, arguments.steps).items())[: arguments.rows]:
            print(f"  {key:<48}{ms:>7.2f}")
    first, second = medians.values()
    print(f"\nnarrow norms are {first / second:.2f} times as fast")
    return 0


if __name__ == "__main__":
    run_command(main)
