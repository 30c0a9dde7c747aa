"""``python -m benchmarks.resizes``: what a call is worth on drawings resized in ways unknown to it.

Each way makes drawings by the libraries that people use, not by this project's own code.  For each,
the default recipe, shortened, and reference A adapt the same network and are scored
on the same noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from finetune.adapt import adapt
from finetune.challenge import FIRST_SEED, add_data_options, set_seed
from finetune.data.options import open_asked
from finetune.data.runes import NEW_LABEL, choose_runes, split_drawings
from finetune.errors import run_command
from finetune.model.checkpoints import list_networks, load_network
from finetune.recipe import Recipe
from finetune.scoring.estimators import NoiseTable, estimate

from .arguments import positive
from .references import reference_a

_NO_DEADLINE_S = 1e6


def interpolated(size: int = 28, **options: object) -> Callable[[Tensor], Tensor]:
    """`F.interpolate` to ``size``, in the middle of 28x28."""

    def resize(bitmaps: Tensor) -> Tensor:
        images = F.interpolate(bitmaps[:, None].float(), (size, size), **options)  # type: ignore[arg-type]
        return F.pad(images.clamp(0, 1), ((28 - size) // 2,) * 4)

    return resize


def by_pil(filter_: Image.Resampling, size: int = 28) -> Callable[[Tensor], Tensor]:
    """PIL's resize of black on white in 8 bits, inverted; in the middle of 28x28."""

    def resize(bitmaps: Tensor) -> Tensor:
        pages = [Image.fromarray((255 * (1 - b)).numpy().astype(np.uint8)) for b in bitmaps]
        small = np.stack([np.asarray(page.resize((size, size), filter_)) for page in pages])
        return F.pad(1 - torch.from_numpy(small)[:, None] / 255, ((28 - size) // 2,) * 4)

    return resize


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "bilinear": interpolated(mode="bilinear"),
    "antialiased": interpolated(mode="bilinear", antialias=True),
    "nearest": interpolated(mode="nearest"),
    "max-of-cell": lambda bitmaps: F.adaptive_max_pool2d(bitmaps[:, None].float(), 28),
    "pil-bilinear": by_pil(Image.Resampling.BILINEAR),
    "aligned-corners": interpolated(mode="bilinear", align_corners=True),
    "20-in-28": interpolated(20, mode="bilinear", antialias=True),
    "20-in-28-plain": interpolated(20, mode="bilinear"),
    "pil-lanczos": by_pil(Image.Resampling.LANCZOS),
}
_DEFAULT = [way for way in WAYS if way not in ("20-in-28-plain", "pil-lanczos")]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resizes", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_data_options(parser)
    parser.add_argument("--runes", nargs="+", metavar="RUNE", help="default: one")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=_DEFAULT, help="of resizing")
    parser.add_argument("--steps", type=positive, default=500)
    parser.add_argument(
        "--replicates", type=positive, default=2, help="noises for each image and t"
    )
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--no-reference", action="store_true", help="leave reference A out")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(steps=arguments.steps, deadline_s=_NO_DEADLINE_S)
    source = open_asked(arguments)
    source.check_bitmaps()
    network = load_network(list_networks(arguments.pretrained)[0])
    print(f"{'rune':<14}{'drawings':<18}{'ours':>8}{'A':>9}{'ratio':>8}", flush=True)
    runes = choose_runes(source, arguments.runes, 1)
    for rune, way in tqdm([(rune, way) for rune in runes for way in arguments.ways], unit="way"):
        split = split_drawings(
            WAYS[way](source.bitmaps[rune]), arguments.split_seed, arguments.train
        )
        table = NoiseTable(
            len(split.test), n_replicates=arguments.replicates, name=rune, equal=True
        )

        def loss(model: torch.nn.Module, x: Tensor = split.test, t: NoiseTable = table) -> float:
            return estimate(model, x, NEW_LABEL, t).mean

        set_seed(FIRST_SEED)
        ours, line = loss(adapt(network, split.train, recipe).model), f"{rune:<14}{way:<18}"
        line += f"{ours:>8.4f}"
        if not arguments.no_reference:
            set_seed(FIRST_SEED)
            a = loss(reference_a(network, split.train))
            line += f"{a:>9.4f}{ours / a:>8.3f}"
        tqdm.write(line)
    return 0


if __name__ == "__main__":
    run_command(main)
