"""Augmentation: the network learns from drawings that are turned, moved and stretched anew.

The numbers worth tuning are the fields of `Settings`.
"""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Settings:
    lr: float = 1e-3  # of AdamW, at its highest
    weight_decay: float = 0.01  # of AdamW
    n_steps: int = 400  # optimizer steps
    batch_size: int = 16  # drawings of a step
    rotation_deg: float = 8.0  # either way
    scale: float = 0.1  # larger or smaller, by a share
    shear: float = 0.1  # how far strokes lean
    shift_px: float = 1.5  # along each axis
    logit_std: float = 1.0  # spread of the times: t is the sigmoid of a normal number
    frozen_middle: bool = False  # whether the middle blocks stay as they are


def augment(images, settings):
    """Each image under an affine map of its own, resampled bilinearly."""
    n, device = len(images), images.device

    def spread(size):
        return size * (2 * torch.rand(n, device=device) - 1)

    angle = spread(math.radians(settings.rotation_deg))
    size = 1 + spread(settings.scale)
    lean = spread(settings.shear)
    shift = settings.shift_px * 2 / images.shape[-1]  # the image spans [-1, 1]
    cos, sin = angle.cos() / size, angle.sin() / size
    maps = torch.stack(
        [cos, lean - sin, spread(shift), sin, cos + lean * sin, spread(shift)], dim=1
    ).view(n, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def with_new_class(model):
    """A copy of the network with one class more."""
    model = copy.deepcopy(model)
    known = model.class_embedding.weight.data
    model.class_embedding = nn.Embedding(len(known) + 1, known.shape[1])
    model.class_embedding.weight.data = torch.cat([known, known.mean(0, keepdim=True)])
    return model


def finetune_model(pretrained_model, train_dataset, settings=Settings(), report=None):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = with_new_class(pretrained_model).to(device).train()
    if settings.frozen_middle:
        model.middle.requires_grad_(False)
    images = torch.stack([image for image, _ in train_dataset]).to(device)
    label = train_dataset[0][1]

    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.n_steps)
    for step in range(1, settings.n_steps + 1):
        chosen = torch.randint(len(images), (settings.batch_size,), device=device)
        x = augment(images[chosen], settings)
        t = torch.sigmoid(settings.logit_std * torch.randn(len(x), 1, 1, 1, device=device))
        noise = torch.randn_like(x)
        c = torch.full((len(x),), label, device=device)
        loss = (model((1 - t) * x + t * noise, t, c) - (noise - x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
        if report is not None:
            report(step, loss)
    return model.eval()
