"""Train the class-conditional flow on MNIST, as in the course.

Each seed gives ``unet_SEED.safetensors`` (half precision, about 3 MB) and a card
``unet_SEED.json`` beside it.  A killed run continues from its last checkpoint and ends with
the same weights as an uninterrupted run.
"""

from __future__ import annotations

import signal
from pathlib import Path

from .arguments import Parser, whole
from .errors import run_command
from .outputs import check_out_directory

_LARGEST_SEED = 2**31 - 1  # times a hundred thousand, it still fits into torch's seeds
_MOST_EPOCHS = 10_000
_MOST_IMAGES = 60_000  # size of MNIST; a larger batch would leave no step in an epoch


def _seeds(text: str) -> list[int]:
    return [whole(0, _LARGEST_SEED)(part) for part in text.split(",")]


def make_parser() -> Parser:
    """The options of this command."""
    parser = Parser("finetune.pretrain", description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        help="directory that holds MNIST/raw (default: downloaded); also $RUNES_DATA",
    )
    parser.add_argument("--out", type=Path, required=True, help="where the networks go")
    parser.add_argument("--seeds", type=_seeds, default=[1], help="for example 1,2,3")
    parser.add_argument("--epochs", type=whole(1, _MOST_EPOCHS), help="default: 10")
    parser.add_argument("--batch-size", type=whole(1, _MOST_IMAGES), help="default: 64")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    check_out_directory(arguments.out)
    # Imported after the options are parsed, because torch takes seconds to import.
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
