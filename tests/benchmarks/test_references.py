"""The reference recipes do what their descriptions say, and the summary computes what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import references
from benchmarks.references import LowRankCorrection, reference_a, reference_b, summary
from finetune.model.groups import add_class
from finetune.model.unet import ConditionalDiffusionUNet

DRAWINGS = torch.rand(10, 1, 28, 28, generator=torch.Generator().manual_seed(0)).round()


@pytest.fixture
def pretrained() -> ConditionalDiffusionUNet:
    torch.manual_seed(0)
    return ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 1, 28, 28, generator=generator)
    return x, torch.full((3, 1, 1, 1), 0.5), torch.full((3,), 10)


def test_a_trains_everything_and_leaves_its_argument_alone(
    pretrained: ConditionalDiffusionUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "_A_EPOCHS", 2)
    before = {k: v.clone() for k, v in pretrained.state_dict().items()}
    adapted = reference_a(pretrained, DRAWINGS).state_dict()
    assert all(torch.equal(v, before[k]) for k, v in pretrained.state_dict().items())
    moved = [k for k, v in adapted.items() if k in before and v.shape == before[k].shape]
    assert all(not torch.equal(adapted[k], before[k]) for k in moved)
    start = before["class_embedding.weight"].mean(0)
    # At most two epochs of two steps of 5e-5.
    assert (adapted["class_embedding.weight"][10] - start).abs().max() < 4 * 5.1e-5


def test_b_freezes_the_network_and_starts_as_it(pretrained: ConditionalDiffusionUNet) -> None:
    add_class(pretrained)
    x, t, c = inputs()
    expected = pretrained(x, t, c)
    corrected = LowRankCorrection(pretrained)
    torch.testing.assert_close(corrected(x, t, c), expected)
    trained = [name for name, p in corrected.named_parameters() if p.requires_grad]
    assert trained == ["model.class_embedding.weight", "down.weight", "up.weight"]
    assert (corrected.up.weight.shape, corrected.down.weight.shape) == ((784, 10), (10, 800))


def test_b_moves_only_the_correction_and_the_embedding(
    pretrained: ConditionalDiffusionUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "_B_STEPS", 3)
    before = {k: v.clone() for k, v in pretrained.state_dict().items()}
    after = reference_b(pretrained, DRAWINGS).state_dict()
    frozen = [k for k in before if k != "class_embedding.weight"]
    assert all(torch.equal(after[f"model.{k}"], before[k]) for k in frozen)
    assert after["up.weight"].abs().sum() > 0


def row(recipe: str, rune: str, loss: float, seconds: float = 1.0) -> dict[str, Any]:
    return {
        "resize": "bilinear",
        "recipe": recipe,
        "rune": rune,
        "loss": loss,
        "seconds": seconds,
    }


def test_the_ratio_is_of_means_over_the_runes_that_both_have() -> None:
    rows = [row("A", "r1", 0.1), row("A", "r2", 0.2), row("A", "r3", 9.0)]
    rows += [row("default", "r1", 0.08, 3.0), row("default", "r2", 0.16, 7.0)]
    a, ours = summary(rows).splitlines()
    assert "3 runes" in a
    assert "ratio to A 0.800 ± 0.000 (2 runes)" in ours  # 20 % on each: no spread at all
    assert "longest call 7.0 s" in ours


def test_the_ratios_error_grows_with_the_disagreement_of_runes() -> None:
    rows = [row("A", "r1", 0.1), row("A", "r2", 0.1)]
    rows += [row("default", "r1", 0.08), row("default", "r2", 0.06)]
    # Half the difference of the two ratios, 0.8 and 0.6.
    assert "ratio to A 0.700 ± 0.100" in summary(rows)


def test_the_summary_is_of_what_was_asked_and_what_is_known_is_not_measured_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    calls = []

    def measure(run: object, network: str, *_: object) -> dict[str, Any]:
        calls.append(network)
        return {"loss": {"one": 0.1, "other": 0.3}[network], "seconds": 1.0}

    monkeypatch.setattr(references, "measure", measure)
    monkeypatch.setattr(references, "list_networks", lambda directory: [directory.name])
    monkeypatch.setattr(references, "load_network", lambda name: name)
    monkeypatch.setattr(references, "network_digest", lambda network: network)
    arguments = ["--source", "drawn", "--recipes", "A", "--runes", "thorn", "feoh"]
    arguments += ["--out", str(tmp_path / "rows.jsonl")]
    for network, loss in (("one", 0.1), ("other", 0.3), ("one", 0.1)):
        references.main([*arguments, "--pretrained", network])
        (line,) = capsys.readouterr().out.splitlines()
        assert f"2 runes  mean loss {loss:.4f}" in line
    assert calls == ["one", "one", "other", "other"]
