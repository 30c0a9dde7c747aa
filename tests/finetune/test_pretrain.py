"""Pretraining: what it writes, and that a killed run ends as an unbroken one would have."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from finetune import pretraining as pretrain_module
from finetune.data import runes as data_module
from finetune.data.mnist import digits_digest
from finetune.errors import UserError
from finetune.model.checkpoints import load_network, network_digest, save_network
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.pretrain import main
from finetune.pretraining import PretrainConfig, pretrain, validation_loss

CPU = torch.device("cpu")
CONFIG = PretrainConfig(seed=3, epochs=2, batch_size=16, precision="fp32")
N_TRAIN, N_TEST = 64, 40
N_STEPS = N_TRAIN // 16 * 2


def digits(directory: Path, split: str) -> tuple[Tensor, Tensor]:
    """Noise in the place of MNIST."""
    n = {"train": N_TRAIN, "test": N_TEST}[split]
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, 1, 28, 28), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 10, (n,), generator=generator)


def tiny() -> ConditionalDiffusionUNet:
    return ConditionalDiffusionUNet(base_dim=8, n_middle_blocks=1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Few digits, a tiny network, a short warm-up, and no signal handler left behind."""
    monkeypatch.setattr(pretrain_module, "load_mnist", digits)
    monkeypatch.setattr(data_module, "find_mnist", lambda data: data)
    monkeypatch.setattr(pretrain_module, "ConditionalDiffusionUNet", tiny)
    monkeypatch.setattr(pretrain_module, "WARMUP_STEPS", 3)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return monkeypatch


def run(out: Path, config: PretrainConfig = CONFIG) -> Path:
    return pretrain(config, Path("nowhere"), out, CPU)


@pytest.fixture
def digest_of(small: pytest.MonkeyPatch) -> Callable[[], str]:
    """The weights that were last handed to be written, before they are rounded."""
    digests: list[str] = []

    def spy(model: torch.nn.Module, *args: Any) -> None:
        digests.append(network_digest(model))
        save_network(model, *args)

    small.setattr(pretrain_module, "save_network", spy)
    return lambda: digests[-1]


def interrupt(monkeypatch: pytest.MonkeyPatch, at_step: int) -> None:
    """Write a checkpoint after every step, and end in the middle of ``at_step``."""
    train_step = pretrain_module._Run.train_step

    def broken(self: Any, images: Tensor, labels: Tensor) -> float:
        loss = train_step(self, images, labels)
        if self.step == at_step:
            raise KeyboardInterrupt
        return loss

    monkeypatch.setattr(pretrain_module, "CHECKPOINT_EVERY_S", -1.0)
    monkeypatch.setattr(pretrain_module._Run, "train_step", broken)


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    steps: list[int] = []
    train_step = pretrain_module._Run.train_step

    def counting(self: Any, images: Tensor, labels: Tensor) -> float:
        steps.append(self.step)
        return train_step(self, images, labels)

    monkeypatch.setattr(pretrain_module._Run, "train_step", counting)
    return steps


def test_network_and_card_can_be_read_back(small: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small.setattr(pretrain_module, "ConditionalDiffusionUNet", ConditionalDiffusionUNet)
    config = PretrainConfig(seed=3, epochs=1, batch_size=32, precision="fp32")
    path = run(tmp_path / "new" / "place", config)
    assert path == tmp_path / "new" / "place" / "unet_3.safetensors"
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "unet_3.json",
        "unet_3.safetensors",
    ], "no checkpoint and no half-written file stay"

    model = load_network(path)
    images, labels = digits(tmp_path, "test")
    mean, error = validation_loss(model, images, labels)
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["validation_loss"] == pytest.approx(mean, rel=2e-3), "but for half precision"
    assert card["validation_standard_error"] == pytest.approx(error, rel=0.05)
    assert card["data_digest"] == digits_digest(*digits(tmp_path, "train"))
    assert card["seed"] == 3 and card["steps"] == 2 and card["batch_size"] == 32
    with safe_open(path, "pt") as file:
        assert file.metadata() == {key: str(value) for key, value in card.items()}


@pytest.mark.parametrize("at_step", [3, N_STEPS // 2 + 1, N_STEPS])
def test_interrupted_run_ends_as_the_unbroken_one(
    small: pytest.MonkeyPatch, digest_of: Callable[[], str], tmp_path: Path, at_step: int
) -> None:
    """In the first epoch, at the start of the second, and after the last step."""
    unbroken = run(tmp_path / "unbroken")
    expected = digest_of()

    out = tmp_path / "broken"
    with small.context() as broken, pytest.raises(KeyboardInterrupt):
        interrupt(broken, at_step)
        run(out)
    state = torch.load(out / "unet_3.checkpoint", weights_only=True)
    assert state["step"] == at_step - 1
    assert not (out / unbroken.name).exists()

    steps = count_steps(small)
    path = run(out)
    assert digest_of() == expected
    written, wanted = load_file(path), load_file(unbroken)
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[name], wanted[name]) for name in wanted)
    assert len(steps) == N_STEPS - at_step + 1, "it continued, and did not start again"
    assert not (out / "unet_3.checkpoint").exists()


def test_kill_while_a_checkpoint_is_written_costs_nothing(
    small: pytest.MonkeyPatch, digest_of: Callable[[], str], tmp_path: Path
) -> None:
    run(tmp_path / "unbroken")
    expected = digest_of()
    save = torch.save

    def half(state: Any, path: Path) -> None:
        if state["step"] == 3:
            path.write_bytes(b"half of it")
            raise KeyboardInterrupt
        save(state, path)

    with small.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(pretrain_module, "CHECKPOINT_EVERY_S", -1.0)
        broken.setattr(torch, "save", half)
        run(tmp_path)
    steps = count_steps(small)
    run(tmp_path)
    assert digest_of() == expected
    assert steps[0] == 2


def test_weights_depend_on_seed_and_data_alone(
    digest_of: Callable[[], str], tmp_path: Path
) -> None:
    digests = []
    for name, seed, global_seed in (("a", 3, 0), ("b", 3, 1), ("c", 4, 1)):
        torch.manual_seed(global_seed)
        run(tmp_path / name, PretrainConfig(seed, epochs=1, batch_size=16, precision="fp32"))
        digests.append(digest_of())
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("change", [{"epochs": 3}, {"batch_size": 8}, {"lr": 1e-3}])
def test_checkpoint_of_another_config_is_refused(
    small: pytest.MonkeyPatch, tmp_path: Path, change: dict[str, Any]
) -> None:
    with small.context() as broken, pytest.raises(KeyboardInterrupt):
        interrupt(broken, 2)
        run(tmp_path)
    checkpoint = tmp_path / "unet_3.checkpoint"
    before = checkpoint.read_bytes()
    other = PretrainConfig(**{**vars(CONFIG), **change})
    with pytest.raises(UserError, match="delete it") as caught:
        run(tmp_path, other)
    assert str(checkpoint) in str(caught.value) and "\n" not in str(caught.value)
    assert checkpoint.read_bytes() == before
    run(tmp_path)


def test_damaged_checkpoint_is_refused(small: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkpoint = tmp_path / "unet_3.checkpoint"
    checkpoint.write_bytes(b"half of it")
    with pytest.raises(UserError, match="damaged; delete it") as caught:
        run(tmp_path)
    assert str(checkpoint) in str(caught.value)


def test_existing_network_is_not_trained_again(
    small: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    final = tmp_path / "unet_3.safetensors"
    final.write_bytes(b"precious")
    small.setattr(pretrain_module, "load_mnist", None)  # not even read
    assert run(tmp_path) == final
    assert final.read_bytes() == b"precious"
    assert str(final) in capsys.readouterr().out


def test_command_trains_each_seed(small: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path), "--seeds", "1,2"]
    assert main([*arguments, "--epochs", "1", "--batch-size", "48", "--precision", "fp32"]) == 0
    cards = [json.loads((tmp_path / f"unet_{seed}.json").read_text()) for seed in (1, 2)]
    assert [card["seed"] for card in cards] == [1, 2]
    assert all(card["epochs"] == 1 and card["batch_size"] == 48 for card in cards)


@pytest.mark.parametrize(
    ("spelling", "typed"),
    [
        (["--data", "{}", "--out", "{}"], True),
        (["--data={}", "--out={}"], True),
        (["--da", "{}", "--o={}"], True),
        (["--data", "{}", "--out", "{}"], False),
    ],
    ids=["apart", "joined", "short", "called"],
)
def test_card_says_nothing_of_the_machine(
    small: pytest.MonkeyPatch, tmp_path: Path, spelling: list[str], typed: bool
) -> None:
    """However the directories are spelt, typed or given by another program."""
    arguments = [part.format(tmp_path) for part in spelling]
    arguments += ["--seeds", "5", "--epochs", "1", "--batch-size", "48", "--precision", "fp32"]
    another = ["--journal", f"{tmp_path}/journal"]
    small.setattr("sys.argv", [f"{tmp_path}/program", *(arguments if typed else another)])
    main(None if typed else arguments)
    written = (tmp_path / "unet_5.json").read_text()
    assert str(tmp_path) not in written
    assert str(tmp_path).encode() not in (tmp_path / "unet_5.safetensors").read_bytes()
    command = json.loads(written)["command"]
    assert command.startswith("python -m finetune.pretrain ")
    assert "--epochs 1" in command and "--batch-size 48" in command and "--seeds 5" in command


@pytest.mark.parametrize("text", ["1;2", "one", "1,,2", ""])
def test_seeds_that_are_no_numbers_are_refused(
    small: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    with pytest.raises(UserError, match=r"argument --seeds: '.*' is no whole number"):
        main(["--out", str(tmp_path), "--seeds", text])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "-1"], "--seeds: -1 is not in 0 to 2147483647"),
        (["--seeds", "1,4294967296"], "--seeds: 4294967296 is not in"),
        (["--seeds", "9" * 5000], "--seeds: '9999"),
        (["--epochs", "0"], "--epochs: 0 is not in 1 to 10000"),
        (["--epochs", "-3"], "--epochs: -3 is not in"),
        (["--batch-size", "0"], "--batch-size: 0 is not in 1 to 60000"),
        (["--batch-size", "60001"], "--batch-size: 60001 is not in"),
    ],
)
def test_numbers_that_train_nothing_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    out = tmp_path / "networks"
    with pytest.raises(UserError, match=words) as error:
        main(["--out", str(out), *arguments])
    assert len(str(error.value)) < 200
    assert not out.exists()


def test_a_place_where_no_network_can_be_written_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out: .*: .*file is no directory"):
        main(["--out", str(tmp_path / "file" / "networks")])


def test_validation_loss_of_a_network_that_answers_nothing() -> None:
    """Its error is e - x, so its loss 1 + x^2."""

    class Silent(ConditionalDiffusionUNet):
        def forward(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
            return torch.zeros_like(x_t)

    images, labels = digits(Path(), "test")
    mean, error = validation_loss(Silent(), images, labels)
    expected = 1 + (images.double() / 255).square().mean().item()
    assert abs(mean - expected) < 4 * error
    per_pixel = (2 + 4 * (expected - 1)) / (N_TEST * 28 * 28)  # variance: of e^2, and of 2 e x
    assert error == pytest.approx(math.sqrt(per_pixel), rel=0.6)


def test_learning_rate_warms_up_and_ends_near_zero(small: pytest.MonkeyPatch) -> None:
    factors = [pretrain_module._schedule(step, 103) for step in range(103)]
    assert factors[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert factors[3:] == sorted(factors[3:], reverse=True)
    assert factors[53] == pytest.approx(0.5)
    assert 0 < factors[-1] < 1e-3
