"""Pretrained networks on disk: ours (half-precision safetensors) and the course's (state dicts).

Loading never unpickles code: safetensors, or ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from ..errors import UserError
from .unet import ConditionalDiffusionUNet

SUFFIXES = (".safetensors", ".pt", ".pth")
# Keys under which a training loop may have nested the weights in its own checkpoint.
_NESTED_KEYS = ("state_dict", "model_state_dict", "model")
# Prefixes that wrappers put before the names of weights: DataParallel and AveragedModel,
# torch.compile, training loops. AveragedModel also has a counter of its updates.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.")
_COUNTER = "n_averaged"


def embedded_dir() -> Path:
    """The networks that come with the package."""
    return Path(str(resources.files("finetune") / "assets"))


def list_networks(directory: Path | None = None) -> list[Path]:
    """The networks in ``directory`` (default: the embedded ones), in the order of their numbers.

    Raises:
        UserError: the directory does not exist, or has no networks.
    """
    directory = directory or embedded_dir()
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; name one that holds unet_1.pt, ...")
    # Some systems leave hidden files beside copies, such as ._unet_1.pt.
    paths = [p for p in directory.iterdir() if p.suffix in SUFFIXES and p.name[0] != "."]
    if not paths:
        raise UserError(f"{directory} holds no network; expected unet_1{SUFFIXES[0]} or unet_1.pt")
    return sorted(paths, key=lambda p: ([int(n) for n in re.findall(r"\d+", p.stem)], p.name))


def load_network(path: Path) -> ConditionalDiffusionUNet:
    """Read one network in float32, in evaluation mode.

    Raises:
        UserError: the file can't be read, or is not a network of the challenge's shape.
    """
    state = _read_state(path)
    model = ConditionalDiffusionUNet()
    try:
        model.load_state_dict({k: v.float() for k, v in state.items()}, strict=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is not ConditionalDiffusionUNet(32, 10, 2, 8): {detail}"
        ) from error
    return model.eval()


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return _without_prefixes(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than weights and is not loaded; "
            "save it again with torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # broken pickles raise KeyError, IndexError, struct.error, ...
        raise UserError(f"{path} can't be read as a network; copy it again") from error
    for key in _NESTED_KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}; a state dict is wanted")
    return _without_prefixes(state)


def _without_prefixes(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights with the network's own names."""
    state = {name: value for name, value in state.items() if name != _COUNTER}
    while state and (prefix := next(filter(_is_prefix_of(state), _PREFIXES), None)):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _is_prefix_of(state: dict[str, torch.Tensor]) -> Callable[[str], bool]:
    return lambda prefix: all(str(name).startswith(prefix) for name in state)


def save_network(
    model: torch.nn.Module, path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a network's weights in half precision, atomically."""
    state = {k: v.detach().cpu().half().contiguous() for k, v in model.state_dict().items()}
    beside = path.with_name(path.name + ".part")
    # `save_file` would make it readable by its owner alone, whatever the umask is.
    beside.write_bytes(save(state, metadata=metadata))
    beside.replace(path)


def network_digest(model: torch.nn.Module) -> str:
    """SHA-256 of names, shapes and values of all parameters, in any storage format."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
