"""The whole path on real drawings; skipped where RUNES_DATA is not set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.adapt import adapt
from finetune.augment.bitmaps import find_resizing
from finetune.augment.mix import Augmenter
from finetune.augment.resizing import Resizing
from finetune.data.runes import NEW_LABEL, RESIZES, Resize, open_omniglot, split_drawings
from finetune.model.checkpoints import list_networks, load_network
from finetune.model.groups import with_mean_class
from finetune.recipe import Recipe
from finetune.scoring.estimators import NoiseTable, estimate, paired_difference

GREYS = torch.tensor([-0.01, 0.02, 0.2, 0.4, 0.6, 0.8, 0.98, 1.01])


def histogram(images: torch.Tensor) -> torch.Tensor:
    counts = torch.histogram(images.flatten().contiguous(), GREYS).hist
    return counts / counts.sum()


def test_forty_steps_teach_a_real_rune_and_strokes_teach_it_better(real_data: Path) -> None:
    source = open_omniglot(real_data)
    split = split_drawings(source.drawings(source.runes[0]), 0)
    pretrained = load_network(list_networks()[0])
    table = NoiseTable(10, 10, 2)

    before = with_mean_class(pretrained)
    losses = {"before": estimate(before, split.test, NEW_LABEL, table)}
    for render in ("direct", "pen"):
        recipe = Recipe(steps=40, batch_size=16, render=render, deadline_s=1000.0)
        model = adapt(pretrained, split.train, recipe).model
        losses[render] = estimate(model, split.test, NEW_LABEL, table)

    taught = paired_difference(losses["before"], losses["direct"])
    assert taught.mean > 0.1 * losses["before"].mean
    better = paired_difference(losses["direct"], losses["pen"])
    assert better.mean > 3 * better.standard_error


@pytest.mark.parametrize("resize", RESIZES)
def test_real_drawings_are_by_the_pen_their_resize_is_found_and_their_greys_are_kept(
    real_data: Path, resize: Resize
) -> None:
    source = open_omniglot(real_data)
    for rune in source.runes[::14]:
        drawings = split_drawings(source.drawings(rune, resize), 0).train
        assert find_resizing(drawings[:, 0]) == Resizing(resize)
    # Of the last one, and of five: it takes a part of a second to follow a pen's path.
    drawings = drawings[:5]
    augment = Augmenter(drawings, Recipe(render="pen"), torch.Generator().manual_seed(0))
    assert augment.by_pen
    distance = (histogram(drawings) - histogram(augment(200))).abs().sum() / 2
    assert distance < 0.02
