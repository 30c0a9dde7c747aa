"""Pretraining of the class-conditional flow on MNIST, resumable to the last bit."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .data.mnist import digits_digest, load_mnist
from .errors import UserError
from .flow import image_losses, stratified_times
from .machine.device import autocast, channels_last, resolve_precision
from .model.checkpoints import save_network
from .model.unet import ConditionalDiffusionUNet

CHECKPOINT_EVERY_S = 60.0
WARMUP_STEPS = 200


@dataclass(frozen=True)
class PretrainConfig:
    """Settings that determine the weights.  A checkpoint of other settings is not continued."""

    seed: int
    epochs: int = 10
    batch_size: int = 64
    lr: float = 2e-3  # peak learning rate; linear warm-up, then a cosine to zero
    ema: float = 0.999  # decay per step of the averaged weights, which are the result
    precision: str = "auto"


class _Run:
    """One seed's training, with everything that a checkpoint needs to continue it exactly."""

    def __init__(self, config: PretrainConfig, n_images: int, device: torch.device) -> None:
        torch.manual_seed(config.seed)  # for the initial weights
        self.config = config
        self.device = device
        self.model = channels_last(ConditionalDiffusionUNet(), device)
        self.ema = [p.detach().clone() for p in self.model.parameters()]
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, fused=True)
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.step = 0
        self.n_images = n_images
        self.steps_per_epoch = n_images // config.batch_size
        self.n_steps = self.steps_per_epoch * config.epochs

    def batch_indices(self) -> Tensor:
        """Indices of this step's images, (B,): a fresh order each epoch, fixed by the seed."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if position == 0 or not hasattr(self, "_order"):
            shuffler = torch.Generator().manual_seed(self.config.seed * 100_003 + epoch)
            self._order = torch.randperm(self.n_images, generator=shuffler)
        b = self.config.batch_size
        return self._order[position * b : (position + 1) * b]

    def train_step(self, images: Tensor, labels: Tensor) -> float:
        c = self.config
        index = self.batch_indices()
        x = images[index].to(self.device).float() / 255  # (B, 1, 28, 28)
        t = stratified_times(len(x), self.generator)[:, None, None, None]
        e = torch.randn(x.shape, generator=self.generator, device=self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = c.lr * _schedule(self.step, self.n_steps)
        with autocast(self.device, self.config.precision):
            loss = image_losses(self.model, x, e, t, labels[index].to(self.device)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        # Early in a run the average is over fewer steps, so that it forgets the initial weights.
        decay = min(c.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.ema, list(self.model.parameters()), 1 - decay)
        return loss.item()

    def averaged_model(self) -> ConditionalDiffusionUNet:
        model = channels_last(ConditionalDiffusionUNet(), self.device)
        with torch.no_grad():
            for p, averaged in zip(model.parameters(), self.ema, strict=True):
                p.copy_(averaged)
        return model.eval()

    def save(self, path: Path) -> None:
        beside = path.with_name(path.name + ".part")
        state = {
            "config": asdict(self.config),
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }
        torch.save(state, beside)
        beside.replace(path)

    def restore(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{path} is damaged; delete it to start this seed again") from error
        if state["config"] != asdict(self.config):
            raise UserError(
                f"{path} was made with {state['config']}; ask for the same, or delete it"
            )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for mine, saved in zip(self.ema, state["ema"], strict=True):
            mine.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])


def _schedule(step: int, n_steps: int) -> float:
    """Linear warm-up, then a cosine to zero: factor of the learning rate, in [0, 1]."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / max(1, n_steps - WARMUP_STEPS)))


@torch.inference_mode()
def validation_loss(
    model: ConditionalDiffusionUNet, images: Tensor, labels: Tensor, *, n_blocks: int = 20
) -> tuple[float, float]:
    """Loss on held-out digits and its standard error.

    The images are cut into ``n_blocks`` independent blocks, t stratified over each; the
    standard error, over blocks, covers images, times and noise.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    means = []
    for x, c in zip(images.chunk(n_blocks), labels.chunk(n_blocks), strict=True):
        x = x.to(device).float() / 255
        t = stratified_times(len(x), generator)[:, None, None, None]
        e = torch.randn(x.shape, generator=generator, device=device)
        means.append(image_losses(model, x, e, t, c.to(device)).mean())
    losses = torch.stack(means)
    return losses.mean().item(), (losses.std() / math.sqrt(len(losses))).item()


def pretrain(config: PretrainConfig, data: Path, out: Path, device: torch.device) -> Path:
    """Train one network, or continue training it; returns the path of its file.

    Raises:
        UserError: MNIST is missing or broken, or a checkpoint of another config is in the way.
    """
    final = out / f"unet_{config.seed}.safetensors"
    if final.exists():
        print(f"{final} is there already; delete it to train it again")
        return final
    images, labels = load_mnist(data, "train")
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / f"unet_{config.seed}.checkpoint"
    run = _Run(config, len(images), device)
    if checkpoint.exists():
        run.restore(checkpoint)

    saved_at = time.monotonic()
    mean_loss = math.nan
    progress = tqdm(total=run.n_steps, initial=run.step, desc=f"seed {config.seed}", unit="step")
    with progress:
        while run.step < run.n_steps:
            loss = run.train_step(images, labels)
            mean_loss = loss if math.isnan(mean_loss) else 0.99 * mean_loss + 0.01 * loss
            progress.update()
            if run.step % 50 == 0:
                progress.set_postfix(loss=f"{mean_loss:.4f}")
            if time.monotonic() - saved_at > CHECKPOINT_EVERY_S:
                run.save(checkpoint)
                saved_at = time.monotonic()

    model = run.averaged_model()
    mean, standard_error = validation_loss(model, *load_mnist(data, "test"))
    card = {
        **asdict(config),
        "precision": resolve_precision(config.precision, device),
        "steps": run.n_steps,
        "data_digest": digits_digest(images, labels),
        "validation_loss": round(mean, 6),
        "validation_standard_error": round(standard_error, 6),
        "validation_data": "MNIST test, 10,000 digits",
        "command": _command(config),
        "torch": torch.__version__,
    }
    save_network(model, final, {k: str(v) for k, v in card.items()})
    final.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)
    print(f"{final}: validation loss {mean:.5f} ± {standard_error:.5f}")
    return final


def _command(config: PretrainConfig) -> str:
    """The command that makes this network, with placeholders for this machine's directories."""
    return (
        f"python -m finetune.pretrain --data DATA --out OUT --seeds {config.seed} "
        f"--epochs {config.epochs} --batch-size {config.batch_size} --precision {config.precision}"
    )
