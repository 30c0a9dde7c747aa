# ruff: noqa
"""A stand-in for the course's script: its names are its own, before and after `finetune_model`.

Some of them are those of the file that is pasted in at the marker, and mean something else.
"""

import copy
import math
import random
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import Dataset


class tqdm:
    """Stands for the module, of which a script uses `trange`."""

    @staticmethod
    def trange(n):
        return range(n)


device = torch.device("cpu")
Batch = 16
Recipe = "a cake's"


def Clock():
    return "tick"


def interpolate(a, b):
    return f"{a}..{b}"


def set_seed(seed):
    random.seed(seed)
    torch.manual_seed(seed)


class Run:
    kind = "the course's"


def block(conv, width):
    return [conv, nn.GroupNorm(8, width), nn.ReLU()]


class ConditionalDiffusionUNet(nn.Module):
    def __init__(self, base_dim=32, n_classes=10, n_updown_blocks=2, n_middle_blocks=8):
        super().__init__()
        self.n_channels_img = 1
        self.n_classes = n_classes
        self.class_embedding = nn.Embedding(n_classes, 16)
        self.conv_in = nn.Sequential(*block(nn.Conv2d(18, base_dim, 3, 1, 1), base_dim))
        down, up, width = [], [], base_dim
        for _ in range(n_updown_blocks):
            grown = 2 * width
            down.append(nn.Sequential(*block(nn.Conv2d(width, grown, 3, 2, 1), grown)))
            double = nn.ConvTranspose2d(2 * grown, width, 3, 2, 1, 1)
            up.append(
                nn.Sequential(*block(double, width), *block(nn.Conv2d(width, width, 1), width))
            )
            width = grown
        self.down_blocks = nn.ModuleList(down)
        self.middle = nn.ModuleList(
            nn.Sequential(*block(nn.Conv2d(width, width, 3, 1, 1), width))
            for _ in range(n_middle_blocks)
        )
        self.up_blocks = nn.ModuleList(up)
        self.conv_out = nn.Conv2d(2 * base_dim, 17, 3, 1, 1)

    def forward(self, x, t, c):
        label = self.class_embedding(c)[:, :, None, None].repeat(1, 1, 28, 28)
        x = first = self.conv_in(torch.cat((x, label, t.repeat(1, 1, 28, 28)), dim=1))
        kept = []
        for down in self.down_blocks:
            x = down(x)
            kept.append(x)
        for middle in self.middle:
            x = x + middle(x)
        for i in range(len(self.up_blocks) - 1, -1, -1):
            x = self.up_blocks[i](torch.cat((x, kept[i]), dim=1))
        return self.conv_out(torch.cat((x, first), dim=1))[:, : self.n_channels_img]


class RuneDataset(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], 10


before = (F, nn, Batch, device, Clock, time, math, copy, Recipe, Run, interpolate, set_seed, tqdm)


# PASTE HERE


after = (F, nn, Batch, device, Clock, time, math, copy, Recipe, Run, interpolate, set_seed, tqdm)
kept = all(a is b for a, b in zip(before, after))


# Some of the names come again, as something else than in the file.
math = "a school subject"
time = 25
copy = ["of a copy"]
F = 96485.3


class Batch:
    """Of cookies."""


class Clock:
    """On the wall."""


class Recipe:
    """How to bake."""

    def __init__(self, flour):
        self.flour = flour


class Run:
    """For it."""


def interpolate(x):
    return x + 1


def replace(old):
    return "new"


def dataclass(kind):
    raise AssertionError("the course's dataclass is no decorator of the file's")


def validate_rectified_flow_conditional(model, dataset):
    images = torch.stack([image for image, _ in dataset])
    t = torch.randint(0, 1000, (len(images), 1, 1, 1)) / 1000
    e = torch.randn_like(images)
    c = torch.full((len(images),), 10, dtype=torch.long)
    with torch.no_grad():
        velocity = model((1 - t) * images + t * e, t, c)
    return (velocity - (e - images)).square().mean().item()


def run(pretrained_model, drawings):
    set_seed(43)
    adapted = finetune_model(pretrained_model, RuneDataset(drawings))
    adapted = adapted.to(device).eval()
    losses = [
        validate_rectified_flow_conditional(adapted, RuneDataset(drawings)) for _ in tqdm.trange(2)
    ]
    return adapted, losses


def pretrained(state):
    network = ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)
    network.load_state_dict(state)
    return network


network, losses = run(pretrained(STATE), DRAWINGS)
meanings = (Recipe(1).flour, interpolate(1), replace("old"), math, time, copy, F, Run.__doc__)
