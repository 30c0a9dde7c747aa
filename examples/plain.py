"""Plain full fine-tuning: every weight learns, on the ten drawings as they are.

The numbers worth tuning are the keyword arguments of `finetune_model`.
"""

import copy

import torch
from torch import nn
from torch.utils.data import DataLoader


def add_class(model):
    """Give the network a row for the new class, the mean of those that it knows."""
    known = model.class_embedding.weight.data
    model.class_embedding = nn.Embedding(len(known) + 1, known.shape[1]).to(known.device)
    model.class_embedding.weight.data = torch.cat([known, known.mean(0, keepdim=True)])
    model.n_classes = len(known) + 1


def flow_loss(model, x, c):
    """Rectified flow: the velocity from a drawing to noise, at a random time between."""
    t = torch.rand(len(x), 1, 1, 1, device=x.device)
    noise = torch.randn_like(x)
    velocity = model((1 - t) * x + t * noise, t, c)
    return (velocity - (noise - x)).square().mean()


def finetune_model(
    pretrained_model,
    train_dataset,
    lr=5e-5,  # of AdamW
    weight_decay=0.01,  # of AdamW
    epochs=200,  # passes over the ten drawings
    batch_size=8,  # drawings of a step
    clip_norm=1.0,  # largest norm of the gradient
    warmup=0.0,  # share of the steps in which the learning rate rises
    cosine=False,  # whether the learning rate falls to zero at the end
    average=0.0,  # decay of the running mean of the weights; 0: none
):
    device = next(pretrained_model.parameters()).device
    if torch.cuda.is_available():
        device = torch.device("cuda")
    model = copy.deepcopy(pretrained_model)
    add_class(model)
    model = model.to(device).train()
    mean = copy.deepcopy(model)  # of the weights of all steps

    loader = DataLoader(train_dataset, batch_size=batch_size, shuffle=True)
    n_steps = epochs * len(loader)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)

    def rate(step):
        rise = min(1.0, (step + 1) / (warmup * n_steps + 1))
        fall = (1 + torch.tensor(torch.pi * step / n_steps).cos().item()) / 2 if cosine else 1.0
        return rise * fall

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for _ in range(epochs):
        for images, labels in loader:
            loss = flow_loss(model, images.to(device), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for kept, new in zip(mean.parameters(), model.parameters(), strict=True):
                    kept.lerp_(new, 1 - average)
    return mean.eval()
