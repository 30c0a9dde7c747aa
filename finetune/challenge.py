"""Score a file with ``finetune_model`` as the author's ``run()`` does, with its points.

It makes five timed calls of ``finetune_model``, each with a rune and a pretrained network of
its own.  Each call is scored by the author's estimator on drawings that it did not see, ten
of twenty.  Points are only for ten drawings of Omniglot's Futhorc.  The returned network's
cost is printed, too, because the grader runs it 1,000 times for each rune.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import os
import random
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .arguments import LARGEST_SEED, Parser, whole
from .canvas import RESIZES, Resize
from .data.options import add_drawings_options, open_asked
from .errors import UserError, run_command
from .outputs import check_out

# Imported late: torch takes seconds to import, and `--help` does not need it.
if TYPE_CHECKING:
    from torch import Tensor, nn

    from .data.runes import RuneSource

FinetuneModel = Callable[["nn.Module", Any], "nn.Module"]
TIME_LIMIT_S = 150.0
FIRST_SEED = 42
N_CALLS = 5
# The author's thresholds: the points for a mean loss of at most this.
POINTS = ((0.083, 6), (0.088, 5), (0.094, 4), (0.100, 3), (0.120, 2), (0.150, 1))
EXIT_FAILED = 1
_TICK_S = 1.0


class ChallengeFailure(Exception):  # noqa: N818 - a verdict on the submission, no error of ours
    """The submission can't be scored."""


@dataclass(frozen=True)
class CallScore:
    """One call of ``finetune_model`` and its score."""

    rune: str
    network: str
    seed: int
    loss: float
    standard_error: float
    seconds: float
    cost: float  # CPU time of an answer over the plain network's; see `finetune.scoring.cost`
    pass_s: float  # wall-clock seconds of one of the grader's passes over the drawings
    n_train: int  # number of drawings that the call learnt from


def points(loss: float) -> int:
    """Points for a mean loss, by the author's table."""
    return next((p for threshold, p in POINTS if loss <= threshold), 0)


def earns_points(source: RuneSource, scores: Sequence[CallScore]) -> bool:
    """Whether the author's points apply: ten drawings of Omniglot's Futhorc."""
    from .data.runes import N_TRAIN

    return source.name == "omniglot" and all(s.n_train == N_TRAIN for s in scores)


def set_seed(seed: int) -> None:
    """Seed every global random stream, as the author does before each call."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def notebook_globals() -> dict[str, Any]:
    """The names that the course's notebook defines before ``finetune_model``."""
    import torch

    from .model.unet import ConditionalDiffusionUNet

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"device": device, "ConditionalDiffusionUNet": ConditionalDiffusionUNet}


def run_call(
    finetune: FinetuneModel,
    pretrained: nn.Module,
    train: Tensor,
    seed: int,
    limit_s: float = TIME_LIMIT_S,
) -> tuple[nn.Module, float]:
    """Make one timed call, seeded as the author does; returns the network and the seconds.

    Raises:
        ChallengeFailure: the call raised, passed the limit, or did not return a usable network.
    """
    from torch import nn

    from .data.runes import DrawingDataset

    set_seed(seed)
    start = time.perf_counter()
    try:
        model = finetune(pretrained, DrawingDataset(train))
    except (Exception, SystemExit) as error:  # a file that exits has returned no network
        raise ChallengeFailure(f"finetune_model raised {_told(error)}") from error
    seconds = time.perf_counter() - start
    if seconds > limit_s:
        raise ChallengeFailure(f"the call took {seconds:.1f} s; the limit is {limit_s:g} s")
    if not isinstance(model, nn.Module):
        raise ChallengeFailure(f"finetune_model returned {type(model).__name__}; a model is wanted")
    return model, seconds


def _told(error: BaseException) -> str:
    """The error in one line, with the file and line where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    # The submission's own line if there is one, rather than torch's or the standard library's.
    own = [f for f in frames if not f.filename.startswith((sys.prefix, sys.base_prefix, "<frozen"))]
    ours = f"{Path(__file__).parent}{os.sep}"
    theirs = [f for f in own if not f.filename.startswith(ours)]
    where = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {words}' if words else ''}{where}"


def score_call(model: nn.Module, test: Tensor, t_samples: int) -> tuple[float, float]:
    """Loss by the author's estimator and its standard error.

    Raises:
        ChallengeFailure: the model does not run under label 10, or its loss is not finite.
    """
    from .data.runes import NEW_LABEL
    from .scoring.estimators import author_estimate

    try:
        estimate = author_estimate(model.eval(), test, NEW_LABEL, passes=t_samples)
    except (Exception, SystemExit) as error:
        raise ChallengeFailure(f"the returned model can't be scored: {_told(error)}") from error
    if not math.isfinite(estimate.mean):
        raise ChallengeFailure(f"the returned model's loss is {estimate.mean}")
    return estimate.mean, estimate.standard_error


@contextmanager
def _ticking(bar: tqdm[Any]) -> Iterator[tqdm[Any]]:
    """Redraw a bar each second on a terminal, so that its clock goes on during a long call."""
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(_TICK_S):
            bar.refresh()

    thread = threading.Thread(target=tick, daemon=True)
    if sys.stderr.isatty():
        thread.start()
    try:
        yield bar
    finally:
        ended.set()
        bar.close()


def run_challenge(
    finetune: FinetuneModel,
    source: RuneSource,
    runes: Sequence[str],
    networks: Sequence[Path],
    *,
    resize: Resize = "bilinear",
    split_seed: int = 0,
    n_train: int | None = None,
    t_samples: int = 1000,
    picture: Path | None = None,
) -> list[CallScore]:
    """Score ``finetune`` on each rune; call i has seed 42 + i and network i, in turn.

    Raises:
        ChallengeFailure: as in `run_call` and `score_call`, with the rune's name.
        UserError: a rune's drawings can't be split with ``n_train`` to learn from.
    """
    from .data.runes import NEW_LABEL
    from .model.checkpoints import load_network
    from .model.groups import with_mean_class
    from .scoring.cost import measure_cost, measure_pass_s
    from .scoring.pictures import draw_samples, save_sheet

    # All are split before the first call, so that a mistake is reported at once.
    splits = [source.split(rune, resize, split_seed, n_train) for rune in runes]
    scores, rows = [], []
    with _ticking(tqdm(runes, desc="challenge", unit="rune")) as bar:
        for i, (rune, split) in enumerate(zip(bar, splits, strict=True), start=1):
            path = networks[(i - 1) % len(networks)]
            pretrained = load_network(path)
            given = copy.deepcopy(pretrained)
            try:
                model, seconds = run_call(finetune, given, split.train, FIRST_SEED + i)
                loss, standard_error = score_call(model, split.test, t_samples)
            except ChallengeFailure as failure:
                raise ChallengeFailure(f"{rune}: {failure}") from failure
            score = CallScore(
                rune=rune,
                network=path.stem,
                seed=FIRST_SEED + i,
                loss=loss,
                standard_error=standard_error,
                seconds=seconds,
                cost=measure_cost(model, pretrained, split.test, NEW_LABEL).ratio,
                pass_s=measure_pass_s(model, split.test, NEW_LABEL),
                n_train=len(split.train),
            )
            scores.append(score)
            if picture is not None:
                before = with_mean_class(pretrained)
                rows += [split.test]
                rows += [
                    draw_samples(m, NEW_LABEL, len(split.test), seed=0) for m in (before, model)
                ]
            del model  # free its bank of images before the next call
    if picture is not None:
        try:
            save_sheet(rows, picture)
        except OSError as error:  # only warn, because the scores took minutes
            print(f"{picture} can't be written: {error.strerror}", file=sys.stderr)
    return scores


def mean_loss(scores: Sequence[CallScore]) -> tuple[float, float]:
    """Mean loss over the calls, and its standard error from the errors of the estimates."""
    mean = sum(s.loss for s in scores) / len(scores)
    return mean, math.sqrt(sum(s.standard_error**2 for s in scores)) / len(scores)


def mean_cost(scores: Sequence[CallScore]) -> float:
    """Mean over the calls of an answer's CPU time relative to the plain network's."""
    return statistics.fmean(s.cost for s in scores)


def grader_seconds(scores: Sequence[CallScore]) -> float:
    """Wall-clock seconds that the grader needs: the calls, and 1,000 passes for each rune."""
    from .scoring.cost import GRADER_PASSES

    return sum(s.seconds + GRADER_PASSES * s.pass_s for s in scores)


def table(scores: Sequence[CallScore], *, with_points: bool) -> str:
    """A table for people: one line for each rune, the mean, and its points if it earns any."""

    def worth(loss: float) -> str:
        return f"{points(loss) if with_points else '–':>8}"

    width = max(14, *(len(s.rune) + 2 for s in scores))
    lines = [
        f"{'rune':<{width}}{'network':<10}{'loss':>8}   {'± s.e.':<8}{'seconds':>8}{'cost':>8}"
        f"{'points':>8}"
    ]
    for s in scores:
        lines.append(
            f"{s.rune:<{width}}{s.network:<10}{s.loss:>8.4f} ± {s.standard_error:<8.4f}"
            f"{s.seconds:>8.1f}{s.cost:>8.2f}{worth(s.loss)}"
        )
    mean, standard_error = mean_loss(scores)
    spread = statistics.pstdev(s.loss for s in scores)
    lines.append(
        f"{'mean':<{width + 10}}{mean:>8.4f} ± {standard_error:<8.4f}"
        f"{max(s.seconds for s in scores):>8.1f}{mean_cost(scores):>8.2f}{worth(mean)}"
    )
    lines.append(f"spread over runes {spread:.4f}; seconds of the mean are the longest call's")
    if not with_points:
        lines.append(
            "no points: the author's thresholds are for ten drawings of Omniglot's Futhorc"
        )
    lines.append(
        "cost: CPU time of an answer over the plain network's; the whole grading takes "
        f"{grader_seconds(scores):.0f} s on this machine"
    )
    return "\n".join(lines)


def load_submission(path: Path) -> FinetuneModel:
    """Run a Python file and return its ``finetune_model``.

    Raises:
        UserError: the file does not exist, fails, or defines no ``finetune_model``.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; name the Python file that is handed in")
    spec = importlib.util.spec_from_file_location("submission", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    vars(module).update(notebook_globals())
    sys.modules["submission"] = module  # dataclasses look up their module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} does not import: {_told(error)}") from error
    finetune: FinetuneModel | None = getattr(module, "finetune_model", None)
    if not callable(finetune):
        raise UserError(f"{path} defines no finetune_model(pretrained_model, train_dataset)")
    return finetune


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of runes, networks and the resize, which several commands share."""
    add_drawings_options(parser)
    parser.add_argument(
        "--source", choices=("omniglot", "drawn"), default="omniglot", help="which runes"
    )
    parser.add_argument("--pretrained", type=Path, help="directory of networks (default: embedded)")
    parser.add_argument("--resize", choices=RESIZES, default="bilinear")
    parser.add_argument(
        "--split-seed", type=whole(0, LARGEST_SEED), default=0, help="which drawings train"
    )


def make_parser() -> Parser:
    """The options of this command."""
    parser = Parser("finetune.challenge", description=__doc__)
    parser.add_argument(
        "--submission", type=Path, help="file with finetune_model (default: the default recipe)"
    )
    add_data_options(parser)
    parser.add_argument("--runes", nargs="+", metavar="RUNE", help="default: five, spread evenly")
    parser.add_argument(
        "--t-samples", type=whole(2, 10**6), default=1000, help="passes of the estimator"
    )
    parser.add_argument("--picture", type=Path, help="PNG: real, before and after, for each rune")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    if arguments.picture is not None:
        check_out(arguments.picture, "--picture")
    # A submission's output goes to standard error, so that standard output has only the result.
    with redirect_stdout(sys.stderr):
        source, scores = _score(arguments)
    if isinstance(scores, ChallengeFailure):
        print(f"failed: {scores}", file=sys.stderr)
        return EXIT_FAILED
    _print_result(source, scores, arguments)
    return 0


def _score(arguments: argparse.Namespace) -> tuple[RuneSource, list[CallScore] | ChallengeFailure]:
    """Open the drawings and score the submission on them."""
    from .adapt import finetune_model
    from .data.runes import choose_runes
    from .model.checkpoints import list_networks

    finetune = load_submission(arguments.submission) if arguments.submission else finetune_model
    source = open_asked(arguments)
    try:
        scores = run_challenge(
            finetune,
            source,
            choose_runes(source, arguments.runes, N_CALLS),
            list_networks(arguments.pretrained),
            resize=arguments.resize,
            split_seed=arguments.split_seed,
            n_train=arguments.train,
            t_samples=arguments.t_samples,
            picture=arguments.picture,
        )
    except ChallengeFailure as failure:
        return source, failure
    return source, scores


def _print_result(
    source: RuneSource, scores: Sequence[CallScore], arguments: argparse.Namespace
) -> None:
    with_points = earns_points(source, scores)
    if arguments.json:
        mean, standard_error = mean_loss(scores)
        report = {
            "source": source.name,
            "data_digest": source.digest,
            "resize": arguments.resize,
            "calls": [asdict(s) for s in scores],
            "mean_loss": mean,
            "standard_error": standard_error,
            "points": points(mean) if with_points else None,
            "cost": mean_cost(scores),
            "grader_s": grader_seconds(scores),
        }
        print(json.dumps(report, indent=2))
    else:
        print(table(scores, with_points=with_points))


if __name__ == "__main__":
    run_command(main)
