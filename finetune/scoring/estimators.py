"""Two estimators of a network's rectified-flow loss on given drawings.

`author_estimate` is the challenge's own.  `estimate` has the same expectation and a far
smaller error for the same number of network evaluations: t is stratified, most finely where
the loss changes most, and the noise comes from a fixed table that all networks share.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..flow import VelocityModel, image_losses

AUTHOR_TIMES = 1000  # t is drawn from {0, 1, ..., 999} / 1000
T_BINS = 10
# Images in one network evaluation: few enough for a CPU's caches, many enough to fill a GPU.
_BATCH, _GPU_BATCH = 100, 2500
# Which share of the strata lies below which t.  Near t = 0 a network can't tell how little noise
# there is, and its loss falls from 1 to a tenth within a short range.  Near t = 1 the loss differs
# little between noises.
_SHARES = (0.0, 0.04, 0.08, 0.12, 0.16, 0.92, 1.0)
_TIMES = (0.0, 0.004, 0.012, 0.03, 0.06, 0.8, 1.0)


@dataclass(frozen=True)
class LossEstimate:
    """A mean loss with its standard error over t and noise, for fixed drawings."""

    mean: float
    standard_error: float
    n_evaluations: int

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.standard_error:.4f}"


@dataclass(frozen=True)
class LossTable(LossEstimate):
    """An estimate with its parts.

    ``replicates`` (r,): means over independent parts of the table; their spread is the
    standard error.  ``per_image`` (n,) and ``per_t_bin`` (T_BINS,): means by drawing and
    by t in [0, 1/T_BINS), ...
    """

    replicates: tuple[float, ...]
    per_image: tuple[float, ...]
    per_t_bin: tuple[float, ...]


def author_estimate(
    model: nn.Module, x: Tensor, label: int, *, passes: int = 1000, batch_size: int = 10
) -> LossEstimate:
    """The challenge's validation: the mean of ``passes`` passes over ``x`` (n, 1, 28, 28).

    In each pass every image gets one t from {0, ..., 999}/1000 and one noise, from the
    global random stream; the loss is averaged over each batch of ``batch_size``, then over
    the batches.  Passes run side by side in large batches, which changes no expectation.
    The standard error is the deviation of the passes over the root of their number.
    """
    n = len(x)
    batches = torch.arange(n) // batch_size
    means = []
    with _evaluating(model) as (call, device, batch):
        at_once = max(1, batch // n)
        for first in range(0, passes, at_once):
            k = min(at_once, passes - first)
            images = x.to(device).repeat(k, 1, 1, 1)
            t = torch.randint(0, AUTHOR_TIMES, (k * n, 1, 1, 1), device=device) / AUTHOR_TIMES
            e = torch.randn_like(images)
            c = torch.full((k * n,), label, device=device)
            losses = image_losses(call, images, e, t, c).view(k, n).cpu().double()
            by_batch = [losses[:, batches == b].mean(1) for b in range(int(batches[-1]) + 1)]
            means.append(torch.stack(by_batch).mean(0))
    pass_means = torch.cat(means)
    return LossEstimate(
        mean=pass_means.mean().item(),
        standard_error=_standard_error(pass_means),
        n_evaluations=passes * n,
    )


@dataclass(frozen=True)
class NoiseTable:
    """Times and noises for ``n_images`` images, fixed by a seed: common random numbers.

    Each image has ``n_replicates`` independent sets of ``n_strata`` times, one time in each
    of ``n_strata`` bins, which are weighted by their `widths` (Cochran, Sampling Techniques
    (1977), section 5.3).  Losses of two networks on the same table differ hardly by chance.

    ``name`` identifies the images.  Each set of images has noise of its own, because errors of
    shared noise would not average out over sets.  With ``equal`` all bins have the same width;
    without it they are narrow where losses change.
    """

    n_images: int
    n_strata: int = 25
    n_replicates: int = 8
    seed: int = 0
    name: str = ""
    equal: bool = False

    @property
    def widths(self) -> Tensor:
        """The width of each bin in [0, 1), (n_strata,) float64; they add up to 1."""
        return self._edges.diff()

    @property
    def _edges(self) -> Tensor:
        shares = np.linspace(0, 1, self.n_strata + 1)
        return torch.from_numpy(shares if self.equal else np.interp(shares, _SHARES, _TIMES))

    def replicate(self, r: int) -> tuple[Tensor, Tensor]:
        """Times (n_images, n_strata) and noises (n_images, n_strata, 1, 28, 28)."""
        times = torch.Generator().manual_seed(_mix(self.seed, self.name, r, 0))
        noises = torch.Generator().manual_seed(_mix(self.seed, self.name, r, 1))
        shape = (self.n_images, self.n_strata)
        u = torch.rand(shape, generator=times)
        # Times are float32, which can round up to 1; networks are defined below it.
        t = (self._edges[:-1] + u * self.widths).float().clamp(max=1 - 2**-24)
        e = torch.randn((*shape, 1, 28, 28), generator=noises)
        return t, e


def estimate(model: nn.Module, x: Tensor, label: int, table: NoiseTable | None = None) -> LossTable:
    """Loss of ``model`` on ``x`` (n, 1, 28, 28) under ``label``, by a fixed table of noise.

    It takes n x n_strata x n_replicates network evaluations.

    Raises:
        ValueError: the table is for another number of images.
    """
    table = table or NoiseTable(len(x))
    if table.n_images != len(x):
        raise ValueError(f"the table is for {table.n_images} images, not {len(x)}")
    replicates, per_image = [], []
    bin_sums, bin_widths = torch.zeros(2, T_BINS, dtype=torch.float64)
    widths = table.widths
    with _evaluating(model) as (call, device, batch):
        for r in range(table.n_replicates):
            t, e = table.replicate(r)
            losses = _table_losses(call, x, label, t, e, device, batch)  # (n, n_strata)
            per_image.append(losses @ widths)
            replicates.append(per_image[-1].mean())
            bins = (t * T_BINS).long().flatten()
            bin_sums.index_add_(0, bins, (losses * widths).flatten())
            bin_widths.index_add_(0, bins, widths.expand_as(losses).flatten())
    means = torch.stack(replicates)
    return LossTable(
        mean=means.mean().item(),
        standard_error=_standard_error(means),
        n_evaluations=table.n_images * table.n_strata * table.n_replicates,
        replicates=tuple(means.tolist()),
        per_image=tuple(torch.stack(per_image).mean(0).tolist()),
        per_t_bin=tuple((bin_sums / bin_widths).tolist()),
    )


def paired_difference(a: LossTable, b: LossTable) -> LossEstimate:
    """``a - b`` for two networks on the same table, with the difference's own error.

    Raises:
        ValueError: the two have different numbers of replicates.
    """
    if len(a.replicates) != len(b.replicates):
        raise ValueError(f"{len(a.replicates)} replicates against {len(b.replicates)}")
    differences = torch.tensor(a.replicates, dtype=torch.float64) - torch.tensor(
        b.replicates, dtype=torch.float64
    )
    return LossEstimate(
        mean=differences.mean().item(),
        standard_error=_standard_error(differences),
        n_evaluations=a.n_evaluations + b.n_evaluations,
    )


def _table_losses(
    call: VelocityModel,
    x: Tensor,
    label: int,
    t: Tensor,
    e: Tensor,
    device: torch.device,
    batch: int,
) -> Tensor:
    """Losses of every (image, stratum), (n, n_strata) float64."""
    n, s = t.shape
    images = x[:, None].expand(n, s, *x.shape[1:]).flatten(0, 1)
    times, noises = t.flatten()[:, None, None, None], e.flatten(0, 1)
    chunks = []
    for i in range(0, n * s, batch):
        part = slice(i, i + batch)
        c = torch.full((len(images[part]),), label, device=device)
        losses = image_losses(
            call, images[part].to(device), noises[part].to(device), times[part].to(device), c
        )
        chunks.append(losses.cpu().double())
    return torch.cat(chunks).view(n, s)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[tuple[VelocityModel, torch.device, int]]:
    """Evaluation mode without gradients; the model's own mode is restored.

    Yields the model, its device, and the number of images in one evaluation.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            device = next(model.parameters()).device
            yield model, device, _GPU_BATCH if device.type == "cuda" else _BATCH
    finally:
        for module, training in modes:
            module.training = training


def _standard_error(values: Tensor) -> float:
    """Standard error of the mean of independent values, (k,); NaN if there is only one."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan


def _mix(seed: int, name: str, replicate: int, stream: int) -> int:
    # Torch's generator on CPUs uses only the last 32 bits of a seed.
    return (zlib.crc32(name.encode()) + (seed * 1_000_003 + replicate) * 2 + stream) % 2**32
