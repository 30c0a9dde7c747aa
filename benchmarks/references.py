"""``python -m benchmarks.references``: two public recipes as the bar, and ours.

Each recipe adapts the same networks to the same drawings and is scored on the same other
drawings with the same table of noise, so that differences are paired.  Rows go to a JSON
lines file as they come; what stands there already is not computed again.

A  full fine-tuning, AdamW at 5e-5 with weight decay 0.01, 200 epochs of batch 8, gradient
   norm clipped to 1, no augmentation; the epoch with the lowest training loss is kept.
B  everything frozen but the class embedding, and a rank-10 linear map from the noisy image
   and the embedding to a correction of the velocity; Adam at 1e-2, 8000 steps of batch 10.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm, trange

from finetune.adapt import adapt
from finetune.challenge import FIRST_SEED, add_data_options, set_seed
from finetune.data.options import open_asked
from finetune.data.runes import NEW_LABEL, choose_runes
from finetune.errors import UserError, run_command
from finetune.flow import image_losses
from finetune.model.checkpoints import list_networks, load_network, network_digest
from finetune.model.groups import embedding_of, with_mean_class
from finetune.recipe import Recipe, RecipeError
from finetune.scoring.estimators import NoiseTable, estimate

from .figures import ratio

Adapt = Callable[[nn.Module, Tensor], nn.Module]
_A_EPOCHS, _A_BATCH, _A_LR, _A_DECAY, _A_CLIP = 200, 8, 5e-5, 0.01, 1.0
_NO_DEADLINE_S = 1e6
_B_STEPS, _B_BATCH, _B_LR, _B_RANK = 8000, 10, 1e-2, 10


def _random_loss(model: nn.Module, x: Tensor) -> Tensor:
    """Flow loss of a batch with fresh uniform times and noise from the global stream."""
    t, c = torch.rand(len(x), 1, 1, 1), torch.full((len(x),), NEW_LABEL)
    return image_losses(model, x, torch.randn_like(x), t, c).mean()


def reference_a(pretrained: nn.Module, drawings: Tensor) -> nn.Module:
    """Plain full fine-tuning."""
    model = with_mean_class(pretrained).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_A_LR, weight_decay=_A_DECAY)
    lowest, best = math.inf, copy.deepcopy(model.state_dict())
    for _ in trange(_A_EPOCHS, desc="A", unit="epoch", leave=False):
        losses = []
        for batch in drawings[torch.randperm(len(drawings))].split(_A_BATCH):
            loss = _random_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), _A_CLIP)
            optimizer.step()
            losses.append(loss.item())
        mean = sum(losses) / len(losses)
        if mean < lowest:
            lowest, best = mean, copy.deepcopy(model.state_dict())
    model.load_state_dict(best)
    return model.eval()


class LowRankCorrection(nn.Module):
    """The frozen network plus V U (noisy image, class embedding), of rank 10."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        embedding_of(model).requires_grad_(True)
        n_pixels = 28 * 28
        self.down = nn.Linear(n_pixels + embedding_of(model).embedding_dim, _B_RANK, bias=False)
        self.up = nn.Linear(_B_RANK, n_pixels, bias=False)
        nn.init.zeros_(self.up.weight)  # starts as the pretrained network

    def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        features = torch.cat([x_t.flatten(1), embedding_of(self.model)(c)], dim=1)
        correction: Tensor = self.up(self.down(features)).view_as(x_t)
        velocity: Tensor = self.model(x_t, t, c)
        return velocity + correction


def reference_b(pretrained: nn.Module, drawings: Tensor) -> nn.Module:
    """A new embedding and a low-rank correction on a frozen network."""
    model = LowRankCorrection(with_mean_class(pretrained)).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=_B_LR)
    for _ in trange(_B_STEPS, desc="B", unit="step", leave=False):
        loss = _random_loss(model, drawings[torch.randperm(len(drawings))[:_B_BATCH]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


REFERENCES: dict[str, Adapt] = {"A": reference_a, "B": reference_b}
# What a row is about; a row with the same values is not computed again.
KEYS = ("source", "data", "resize", "split", "rune", "network", "recipe", "recipe_digest")


def read_recipe(path: Path) -> Recipe:
    """A recipe from a JSON file.

    Raises:
        UserError: no such file, or no recipe.
    """
    try:
        return Recipe.from_json(path.read_text())
    except (OSError, RecipeError) as error:
        raise UserError(f"{path}: {error}") from error


def _ours(recipe: Recipe) -> Adapt:
    def run(pretrained: nn.Module, drawings: Tensor) -> nn.Module:
        with tqdm(total=100, desc="ours", unit="%", leave=False) as progress:

            def show(p: Any) -> None:
                progress.update(100 * p.share - progress.n)

            return adapt(pretrained, drawings, recipe, show).model

    return run


def measure(
    run: Adapt, pretrained: nn.Module, train: Tensor, test: Tensor, seed: int
) -> dict[str, Any]:
    """One row: the recipe's loss on the common table, by replicate, and its seconds."""
    set_seed(seed)
    start = time.perf_counter()
    model = run(pretrained, train)
    seconds = time.perf_counter() - start
    # With bins of one width, as all rows so far: they are compared on the same noise.
    losses = estimate(model, test, NEW_LABEL, NoiseTable(len(test), equal=True))
    return {
        "seconds": round(seconds, 2),
        "loss": losses.mean,
        "standard_error": losses.standard_error,
        "replicates": losses.replicates,
        "per_t_bin": losses.per_t_bin,
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """Mean loss of each recipe by resize, and its ratio to A over the runes that both have."""
    lines = []
    for resize in dict.fromkeys(row["resize"] for row in rows):
        by_recipe: dict[str, dict[str, dict[str, Any]]] = {}
        for row in rows:
            if row["resize"] == resize:
                by_recipe.setdefault(row["recipe"], {})[row["rune"]] = row
        for name, mine in by_recipe.items():
            losses = torch.tensor([row["loss"] for row in mine.values()])
            slowest = max(row["seconds"] for row in mine.values())
            line = f"{resize:<12}{name:<10}{len(mine):>3} runes  mean loss {losses.mean():.4f}"
            line += f"  longest call {slowest:.1f} s"
            common = [rune for rune in mine if rune in by_recipe.get("A", {})]
            if name != "A" and len(common) > 1:
                ours, a = ([of[rune]["loss"] for rune in common] for of in (mine, by_recipe["A"]))
                over, error = ratio(ours, a)
                line += f"  ratio to A {over:.3f} ± {error:.3f} ({len(common)} runes)"
            lines.append(line)
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.references", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_data_options(parser)
    parser.add_argument("--runes", nargs="+", metavar="RUNE", help="default: all")
    parser.add_argument("--recipes", default="A,B,default", help="some of A,B,default")
    parser.add_argument("--recipe", type=Path, help="JSON recipe to score as 'custom' as well")
    parser.add_argument("--out", type=Path, default=Path("build/references.jsonl"))
    parser.add_argument("--threads", type=int, help="of one call (default: torch's)")
    parser.add_argument(
        "--no-deadline",
        action="store_true",
        help="give our recipes all their steps, however long this machine takes",
    )
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    known = dict(REFERENCES)
    recipes = {"default": Recipe()}
    names = arguments.recipes.split(",")
    if arguments.recipe:
        recipes["custom"] = read_recipe(arguments.recipe)
        names.append("custom")
    if arguments.no_deadline:
        recipes = {k: replace(r, deadline_s=_NO_DEADLINE_S) for k, r in recipes.items()}
    known |= {name: _ours(recipe) for name, recipe in recipes.items()}
    for name in names:
        if name not in known:
            raise UserError(f"--recipes names {name!r}; write some of {','.join(known)}")
    source = open_asked(arguments)
    runes = choose_runes(source, arguments.runes, len(source.runes))
    networks = list_networks(arguments.pretrained)

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    stored = {tuple(row[k] for k in KEYS): row for row in map(json.loads, lines)}
    asked = []
    work = [(i, rune, name) for i, rune in enumerate(runes) for name in names]
    for i, rune, name in tqdm(work, desc=arguments.resize, unit="call"):
        network = load_network(networks[i % len(networks)])
        row = {
            "source": source.name,
            "data": source.mark(arguments.train),
            "resize": arguments.resize,
            "split": arguments.split_seed,
            "rune": rune,
            "network": network_digest(network)[:12],
            "recipe": name,
            "recipe_digest": recipes[name].digest if name in recipes else "",
        }
        if (there := stored.get(tuple(row.values()))) is not None:
            asked.append(there)
            continue
        split = source.split(rune, arguments.resize, arguments.split_seed, arguments.train)
        row |= measure(known[name], network, split.train, split.test, FIRST_SEED + 1 + i)
        row |= {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
        asked.append(row)
        with arguments.out.open("a") as out:
            out.write(json.dumps(row) + "\n")
    print(summary(asked))
    return 0


if __name__ == "__main__":
    run_command(main)
