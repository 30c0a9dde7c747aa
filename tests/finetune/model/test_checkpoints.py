"""Networks on disk: the same however stored, and nothing but weights is ever loaded."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from finetune.errors import UserError
from finetune.model import checkpoints as networks
from finetune.model.checkpoints import list_networks, load_network, network_digest, save_network
from finetune.model.unet import ConditionalDiffusionUNet


@pytest.fixture(scope="module")
def model() -> ConditionalDiffusionUNet:
    """A network whose weights half precision holds exactly."""
    torch.manual_seed(0)
    return ConditionalDiffusionUNet().half().float()


def states_equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def refused(path: Path) -> str:
    """The one line with which the file is refused."""
    with pytest.raises(UserError) as caught:
        load_network(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_saved_networks_come_back_in_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = ConditionalDiffusionUNet()
    path = tmp_path / "unet_1.safetensors"
    save_network(model, path)
    loaded = load_network(path)
    assert not states_equal(loaded, model)
    assert states_equal(loaded, model.half().float())
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert list(tmp_path.iterdir()) == [path]


def test_saving_twice_is_the_identity(model: ConditionalDiffusionUNet, tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_network(model, paths[0])
    save_network(load_network(paths[0]), paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_failed_save_leaves_the_old_file(
    model: ConditionalDiffusionUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "unet_1.safetensors"
    path.write_bytes(b"old")

    def full_disk(to: Path, raw: bytes) -> int:
        with to.open("wb") as file:
            file.write(raw[: len(raw) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_network(model, path)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
def test_checkpoints_of_the_course_are_the_same_network(
    key: str | None, model: ConditionalDiffusionUNet, tmp_path: Path
) -> None:
    state = model.state_dict()
    torch.save({key: state, "epoch": 10} if key else state, tmp_path / "unet_1.pt")
    save_network(model, tmp_path / "unet_1.safetensors")
    theirs, ours = list_networks(tmp_path)
    assert (theirs.suffix, ours.suffix) == (".pt", ".safetensors")
    assert states_equal(load_network(theirs), model)
    assert network_digest(load_network(theirs)) == network_digest(load_network(ours))


def test_digest_sees_one_weight(model: ConditionalDiffusionUNet) -> None:
    before = network_digest(model)
    assert network_digest(model) == before
    changed = ConditionalDiffusionUNet()
    changed.load_state_dict(model.state_dict())
    assert network_digest(changed) == before
    with torch.no_grad():
        weight = changed.get_parameter("middle.3.0.weight").view(-1)
        weight[7] = torch.nextafter(weight[7], torch.tensor(torch.inf))
    assert network_digest(changed) != before


class Harmful:
    """An object whose unpickling creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_code_in_a_pickle_is_refused_and_not_run(
    inside: bool, zipped: bool, model: ConditionalDiffusionUNet, tmp_path: Path
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "unet_1.pt"
    harmful = Harmful(marker)
    content = {**model.state_dict(), "extra": harmful} if inside else harmful
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert "holds more than weights" in refused(path)
    assert not marker.exists()

    loaded = torch.load(path, weights_only=False)  # the same file does harm where it is trusted
    (loaded["extra"] if inside else loaded).close()
    assert marker.exists()


@pytest.fixture(scope="module")
def stored(
    model: ConditionalDiffusionUNet, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The network's bytes in each format, by the file's name."""
    path = tmp_path_factory.mktemp("stored") / "unet.safetensors"
    save_network(model, path)
    buffers = {"zip.pt": io.BytesIO(), "legacy.pt": io.BytesIO()}
    for name, buffer in buffers.items():
        torch.save(model.state_dict(), buffer, _use_new_zipfile_serialization=name == "zip.pt")
    return {path.name: path.read_bytes()} | {n: b.getvalue() for n, b in buffers.items()}


@pytest.mark.parametrize("name", ["unet.safetensors", "zip.pt", "legacy.pt"])
@pytest.mark.parametrize("n_bytes", [0, 1, 100, 5000, 2_000_000, -1])
def test_truncated_files_are_refused(
    name: str, n_bytes: int, stored: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(stored[name][:n_bytes])
    refused(path)
    path.write_bytes(stored[name])
    assert load_network(path).n_classes == 10


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(raw=st.binary(max_size=60).flatmap(lambda b: st.sampled_from([b, b"\x80\x02" + b])))
@example(raw=b"\x80")
@example(raw=b"\x80\x02.")
@example(raw=b"\x80\x02h\x00.")
@example(raw=b"\x80\x02J\x00.")
def test_any_bytes_are_refused(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    for suffix in networks.SUFFIXES:
        path = tmp_path_factory.getbasetemp() / f"any{suffix}"
        path.write_bytes(raw)
        refused(path)


@pytest.mark.parametrize("suffix", networks.SUFFIXES)
def test_missing_files_and_directories_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"unet_1{suffix}"
    assert "no such file" in refused(path)
    path.mkdir()
    refused(path)


def other_states(state: dict[str, Tensor]) -> dict[str, Any]:
    """Contents that are no network of the challenge, by what is wrong with them."""
    missing = {k: v for k, v in state.items() if k != "conv_out.bias"}
    return {
        "class_embedding": ConditionalDiffusionUNet(n_classes=11).state_dict(),
        "conv_out.bias": missing,
        "surplus": {**state, "surplus": torch.zeros(1)},
        "list": [torch.zeros(1)],
        "Tensor": torch.zeros(1),
        "int": {"conv_out.bias": 3},
        "str": {1: torch.zeros(1)},
    }


@pytest.mark.parametrize(
    "wrong", ["class_embedding", "conv_out.bias", "surplus", "list", "Tensor", "int", "str"]
)
def test_other_contents_are_refused(
    wrong: str, model: ConditionalDiffusionUNet, tmp_path: Path
) -> None:
    path = tmp_path / "unet_1.pt"
    torch.save(other_states(model.state_dict())[wrong], path)
    message = refused(path)
    if wrong not in ("int", "str"):
        assert wrong in message


def test_networks_are_listed_by_number(tmp_path: Path) -> None:
    names = ["unet_1.pt", "unet_2.safetensors", "unet_9.pth", "unet_10.pt", "unet_11.safetensors"]
    for name in [*sorted(names), "notes.txt", "unet_3.safetensors.part", ".gitkeep"]:
        (tmp_path / name).touch()
    assert [path.name for path in list_networks(tmp_path)] == names


def test_directories_without_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tmp_path} holds no network; expected")):
        list_networks(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="holds no network"):
        list_networks(tmp_path)
    missing = tmp_path / "missing"
    with pytest.raises(UserError, match=re.escape(f"{missing}: no such directory; name one")):
        list_networks(missing)


def test_hidden_files_of_other_systems_are_no_networks(tmp_path: Path) -> None:
    save_network(ConditionalDiffusionUNet(), tmp_path / "unet_1.safetensors")
    for name in ("._unet_1.safetensors", ".unet_2.pt"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    assert [path.name for path in list_networks(tmp_path)] == ["unet_1.safetensors"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "_orig_mod.module."])
def test_names_that_a_wrapper_has_made_longer_are_read(tmp_path: Path, prefix: str) -> None:
    state = ConditionalDiffusionUNet().state_dict()
    longer = {f"{prefix}{name}": value for name, value in state.items()}
    if prefix == "module.":
        longer["n_averaged"] = torch.tensor(3)  # as AveragedModel stores it
    torch.save(longer, tmp_path / "unet_1.pt")
    loaded = load_network(tmp_path / "unet_1.pt").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
