"""Pictures of drawings and samples, as PNG files."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..flow import sample

_GAP_PX = 1
_ZOOM = 3
_GAP_GREY = 0.35


@torch.no_grad()
def draw_samples(model: nn.Module, label: int, n: int, *, seed: int, n_steps: int = 50) -> Tensor:
    """``n`` samples of a class, (n, 1, 28, 28) in [0, 1]; the same seed gives the same noise."""
    device = next(model.parameters()).device
    e = torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed)).to(device)
    c = torch.full((n,), label, device=device)
    return sample(model, e, c, n_steps=n_steps, method="heun").clamp(0, 1).cpu()


def save_sheet(rows: list[Tensor], path: Path) -> None:
    """Write rows of images, each (n, 1, H, W) in [0, 1], as one grey PNG, zoomed threefold."""
    width = max(len(row) for row in rows)
    lines = []
    for row in rows:
        padded = F.pad(row, (_GAP_PX, _GAP_PX, _GAP_PX, _GAP_PX), value=_GAP_GREY)
        blank = torch.full((width - len(row), *padded.shape[1:]), _GAP_GREY)
        lines.append(torch.cat([*padded, *blank], dim=-1)[0])
    sheet = (torch.cat(lines).clamp(0, 1) * 255).round().byte()
    image = Image.fromarray(sheet.numpy())
    zoomed = image.resize((image.width * _ZOOM, image.height * _ZOOM), Image.Resampling.NEAREST)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    zoomed.save(beside, format="PNG", optimize=True)
    beside.replace(path)
