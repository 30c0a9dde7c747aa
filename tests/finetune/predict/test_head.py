"""The head over grey levels: what it starts as, and what its second path can say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from finetune.predict.head import LevelHead


def head_of(n_in: int, n_levels: int, n_hidden: int) -> LevelHead:
    generator = torch.Generator().manual_seed(1)
    return LevelHead(nn.Conv2d(n_in, 1, 3, padding=1), n_levels, n_hidden, generator)


def features(n: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(n, channels, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("n_hidden", [0, 5])
def test_it_starts_without_an_opinion_but_can_learn_one(n_hidden: int) -> None:
    head = head_of(3, 4, n_hidden)
    logits = head(features())
    assert logits.shape == (2, 4, 6, 6) and not logits.any()
    logits.square().sub(logits).sum().backward()
    last = head.outer if n_hidden else head.direct
    assert last.weight.grad is not None and last.weight.grad.any()
    assert len(list(head.parameters())) == (6 if n_hidden else 2)


def test_its_start_is_the_generators_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    last, heads = nn.Conv2d(3, 1, 3), []
    torch.manual_seed(5)
    for _ in range(2):
        heads.append(LevelHead(last, 4, 8, torch.Generator().manual_seed(1)))
    one, same = heads
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.hidden.weight, same.hidden.weight)
    # Features of unit variance reach the ReLU with a variance of 2 / fan in, times fan in.
    wide = head_of(64, 4, 256)
    assert wide.hidden.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


def test_the_second_path_tells_what_no_sum_over_features_can() -> None:
    """|x| of one feature, by two channels with a ReLU, and the first path's 2x beside it."""
    head = head_of(1, 1, 2)
    with torch.no_grad():
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        head.hidden.weight[:, 0, 1, 1] = torch.tensor([1.0, -1.0])
        head.outer.weight[0, :, 1, 1] = 1
        head.direct.weight[0, 0, 1, 1] = 2
    x = features(channels=1)
    torch.testing.assert_close(head(x), x.abs() + 2 * x)
