"""The ablation: its bound in closed form, and a whole run at a tiny size."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from benchmarks import ablation
from benchmarks.ablation import PosteriorMean, main
from finetune.errors import UserError
from finetune.flow import interpolate


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_the_posterior_mean_of_two_drawings_follows_bayes_rule(t: float) -> None:
    g = torch.Generator().manual_seed(0)
    a, b, e = torch.randn(3, 1, 28, 28, generator=g).unbind()
    times = torch.full((1, 1, 1, 1), t)
    x_t = interpolate(a[None], e[None], times)
    errors = torch.stack([(x_t - (1 - t) * drawing).square().sum() for drawing in (a, b)])
    share = torch.sigmoid((errors[1] - errors[0]) / (2 * t * t))
    mean = share * a + (1 - share) * b
    found = PosteriorMean(torch.stack([a, b]))(x_t, times, torch.tensor([10]))
    torch.testing.assert_close(found, (x_t - mean) / t, rtol=1e-3, atol=1e-3)


def test_of_one_drawing_the_posterior_mean_knows_the_noise() -> None:
    x, e = torch.rand(4, 1, 28, 28), torch.randn(4, 1, 28, 28)
    times = torch.tensor([0.1, 0.4, 0.7, 0.99]).view(4, 1, 1, 1)
    for i in range(4):
        model = PosteriorMean(x[i : i + 1])
        found = model(interpolate(x, e, times)[i : i + 1], times[i : i + 1], torch.tensor([10]))
        torch.testing.assert_close(found, (e - x)[i : i + 1], rtol=1e-3, atol=1e-3)


def test_a_tiny_run_prints_every_recipe_and_the_bound(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    make_tiny: Callable[[ModuleType], None],
) -> None:
    make_tiny(ablation)
    monkeypatch.setattr(ablation, "_BATCH", 100)
    options = ["--source", "drawn", "--runes", "thorn", "--steps", "1", "--samples", "100"]
    options += ["--replicates", "1"]
    assert main([*options, "--change", '{"bank_limit": 0}', '{"output": "velocity"}']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:20].strip() for line in lines[1:]] == [
        "the recipe",
        '{"bank_limit": 0}',
        '{"output": "velocity',
        "posterior mean of 10",
    ]
    for line in lines[1:]:
        values = [float(word) for word in line[34:].split() if word != "±"]
        assert len(values) == 3 + 10 and min(v for v in values if v == v) > 0


def test_a_change_that_is_none_is_told() -> None:
    for text in ("{", '{"bank_limt": 1}', '{"bank_limit": 9}', "3"):
        with pytest.raises(UserError, match="--change"):
            main(["--source", "drawn", "--change", text])
