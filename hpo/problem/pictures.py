"""A picture of one instance: real drawings, and samples before and after adaptation."""

from __future__ import annotations

import io
import tempfile
import weakref
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from finetune.data.runes import NEW_LABEL
from finetune.flow import sample
from finetune.machine.threads import one_thread
from finetune.model.groups import with_mean_class
from finetune.scoring.pictures import save_sheet

from .instances import RuneInstance

# A quarter of the evaluations by which the same network's loss is measured in studies/runes.toml.
N_SAMPLES, EULER_STEPS = 10, 24
_SEED = 0  # all samples start from the same noise, so that pictures can be compared
_ROWS = ("real, unseen", "before", "after")
_MARGIN_PX = 96  # left margin for the names of rows
_PAPER, _INK = 255, 0


class InstancePictures:
    """Draws pictures of instances; a pretrained network is sampled once per process."""

    def __init__(self) -> None:
        self._before: weakref.WeakKeyDictionary[nn.Module, Tensor] = weakref.WeakKeyDictionary()

    def draw(self, instance: RuneInstance, adapted: nn.Module) -> bytes:
        """A grey PNG: drawings that the call did not see, samples before it and after it."""
        pretrained = instance.pretrained
        if pretrained not in self._before:
            # Adaptation starts from here: the new class is the mean of the others.
            self._before[pretrained] = draw_samples(with_mean_class(pretrained))
        real = instance.split.test[:N_SAMPLES].cpu()
        return to_png([real, self._before[pretrained], draw_samples(adapted)])


def draw_samples(model: nn.Module) -> Tensor:
    """Draw samples under the new label, (N_SAMPLES, 1, 28, 28) in [0, 1].

    The model's mode is restored, and no global random stream is used.
    """
    device = next(model.parameters()).device
    noise = torch.Generator().manual_seed(_SEED)
    e = torch.randn(N_SAMPLES, 1, 28, 28, generator=noise).to(device)
    c = torch.full((N_SAMPLES,), NEW_LABEL, device=device)
    was_training = model.training
    model.eval()
    try:
        # One thread: with ten images more threads would only wait for each other.
        with torch.inference_mode(), one_thread(device):
            drawn = sample(model, e, c, n_steps=EULER_STEPS, method="euler")
    finally:
        model.train(was_training)
    return drawn.nan_to_num(0.0).clamp(0, 1).cpu()


def to_png(rows: list[Tensor]) -> bytes:
    """A PNG of the rows of `InstancePictures.draw`, each (n, 1, 28, 28), with their names."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sheet.png"
        save_sheet(rows, path)
        sheet = Image.open(path)
        sheet.load()
    named = Image.new("L", (sheet.width + _MARGIN_PX, sheet.height), _PAPER)
    named.paste(sheet, (_MARGIN_PX, 0))
    pen = ImageDraw.Draw(named)
    for i, name in enumerate(_ROWS[: len(rows)]):
        middle = (i + 0.5) * sheet.height / len(rows)
        pen.text((_MARGIN_PX - 8, middle), name, fill=_INK, anchor="rm", font_size=14)
    out = io.BytesIO()
    named.save(out, format="PNG", optimize=True)
    return out.getvalue()
