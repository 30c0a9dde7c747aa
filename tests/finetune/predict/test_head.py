"""The head over grey levels: what it starts as, and what its second path can say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from finetune.predict.head import LevelHead

CPU = torch.device("cpu")


def features(n: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(n, channels, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("n_hidden", [0, 5])
def test_it_starts_without_an_opinion_but_can_learn_one(n_hidden: int) -> None:
    head = LevelHead(3, 4, n_hidden, CPU, torch.Generator().manual_seed(1))
    logits = head(features())
    assert logits.shape == (2, 4, 6, 6) and not logits.any()
    logits.square().sub(logits).sum().backward()
    last = head.outer if n_hidden else head.direct
    assert last.weight.grad is not None and last.weight.grad.any()
    assert len(list(head.parameters())) == (6 if n_hidden else 2)


def test_its_start_is_the_generators_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same = (LevelHead(3, 4, 8, CPU, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.hidden.weight, same.hidden.weight)
    # Features of unit variance reach the ReLU with a variance of 2 / fan in, times fan in.
    wide = LevelHead(64, 4, 256, CPU, torch.Generator().manual_seed(1))
    assert wide.hidden.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


def test_the_second_path_tells_what_no_sum_over_features_can() -> None:
    """|x| of one feature, by two channels with a ReLU, and the first path's 2x beside it."""
    head = LevelHead(1, 1, 2, CPU)
    with torch.no_grad():
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        head.hidden.weight[:, 0, 1, 1] = torch.tensor([1.0, -1.0])
        head.outer.weight[0, :, 1, 1] = 1
        head.direct.weight[0, 0, 1, 1] = 2
    x = features(channels=1)
    torch.testing.assert_close(head(x), x.abs() + 2 * x)


def test_logits_are_float32_whatever_the_features_are() -> None:
    head = LevelHead(3, 4, 8, CPU, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for convolution in (head.direct, head.outer):
            convolution.weight.normal_(generator=torch.Generator().manual_seed(2))
    x = features().to(memory_format=torch.channels_last)
    found = head(x.bfloat16())
    assert found.dtype == torch.float32 and found.is_contiguous()
    torch.testing.assert_close(found, head(x), rtol=0.05, atol=0.2)
