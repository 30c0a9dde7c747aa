"""Low-rank updates: the network stays as it is, and each convolution learns a small correction.

The numbers worth tuning are the constants.
"""

import time

import torch
import torch.nn.functional as F
from torch import nn

RANK = 8  # of the correction of each convolution
SCALE = 1.0  # of the corrections
LR = 2e-3  # of AdamW, for the corrections
EMBEDDING_LR = 2e-2  # of AdamW, for the new class
STEPS = 600  # optimizer steps
BATCH_SIZE = 10  # drawings of a step
TRAIN_NORMS = True  # whether the norms' weights and biases learn as well
TIME_FROM = 0.0  # times below it are not trained on

TIME_LIMIT_S = 110.0  # after which the call returns, whatever it has done


class LowRankConv(nn.Module):
    """A frozen convolution and a correction: one of few channels, then one over a single pixel."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv.requires_grad_(False)
        self.down = nn.Conv2d(
            conv.in_channels, RANK, conv.kernel_size, conv.stride, conv.padding, bias=False
        )
        self.up = nn.Conv2d(RANK, conv.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)  # it begins as the pretrained network

    def forward(self, x):
        return self.conv(x) + SCALE * self.up(self.down(x))


def add_corrections(module):
    """Put a correction beside every plain convolution below a module."""
    for name, child in module.named_children():
        if type(child) is nn.Conv2d:
            setattr(module, name, LowRankConv(child))
        else:
            add_corrections(child)


class NewClass(nn.Module):
    """The embedding of the known classes, frozen, and of one more, which learns."""

    def __init__(self, embedding):
        super().__init__()
        self.register_buffer("known", embedding.weight.detach().clone())
        self.new = nn.Parameter(self.known.mean(0, keepdim=True))

    def forward(self, c):
        return F.embedding(c, torch.cat([self.known, self.new]))


def finetune_model(pretrained_model, train_dataset, report=None):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    model = pretrained_model.to(device).requires_grad_(False)
    model.class_embedding = NewClass(model.class_embedding)
    add_corrections(model)
    model.to(device).train()
    if TRAIN_NORMS:
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                module.requires_grad_(True)

    new = model.class_embedding.new
    others = [p for p in model.parameters() if p.requires_grad and p is not new]
    optimizer = torch.optim.AdamW(
        [{"params": others, "lr": LR}, {"params": [new], "lr": EMBEDDING_LR}]
    )
    images = torch.stack([image for image, _ in train_dataset]).to(device)
    label = torch.full((BATCH_SIZE,), train_dataset[0][1], device=device)
    for step in range(1, STEPS + 1):
        if time.perf_counter() - start > TIME_LIMIT_S:
            break
        x = images[torch.randint(len(images), (BATCH_SIZE,), device=device)]
        t = TIME_FROM + (1 - TIME_FROM) * torch.rand(BATCH_SIZE, 1, 1, 1, device=device)
        noise = torch.randn_like(x)
        velocity = model((1 - t) * x + t * noise, t, label)
        loss = (velocity - (noise - x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if report is not None:
            report(step, loss)
    return model.eval()
