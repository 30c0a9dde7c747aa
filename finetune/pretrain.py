"""``python -m finetune.pretrain``: the class-conditional flow on MNIST, as the course has it.

Each seed gives ``unet_SEED.safetensors`` (half precision, about 3 MB) and a card
``unet_SEED.json`` beside it.  A killed run continues where its last checkpoint stands and
ends with the weights that an unbroken run would have had.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from .errors import run_command


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; write whole numbers, like 1,2,3") from None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m finetune.pretrain", description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        help="directory that holds MNIST/raw (default: $RUNES_DATA, else downloaded)",
    )
    parser.add_argument("--out", type=Path, required=True, help="where the networks go")
    parser.add_argument("--seeds", type=_seeds, default=[1], help="for example 1,2,3")
    parser.add_argument("--epochs", type=int, help="default: 10")
    parser.add_argument("--batch-size", type=int, help="default: 64")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    arguments = parser.parse_args(argv)
    # After the options: torch takes seconds to import.
    import torch

    from .data.runes import find_mnist
    from .pretraining import PretrainConfig, pretrain

    data = find_mnist(arguments.data)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end cleanly, continue later
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given = {name: getattr(arguments, name) for name in ("epochs", "batch_size", "precision")}
    values = {name: value for name, value in given.items() if value is not None}
    for seed in arguments.seeds:
        pretrain(PretrainConfig(seed=seed, **values), data, arguments.out, device)
    return 0


if __name__ == "__main__":
    run_command(main)
