"""Write the one file that is handed in, with proof that it scores what the study says."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.options import add_drawings_options
from finetune.errors import UserError, run_command

from ..process.devices import check_device, choose_device, n_cores

# Torch takes seconds to import, and `--help` and `--format json` need none of it; `--help` needs
# no Optuna either.
if TYPE_CHECKING:
    import optuna

    from finetune.data.runes import RuneSource
    from finetune.submission.proof import Claim

    from ..problem.instances import Instance, Measuring
    from ..study.config import StudyConfig
    from .selection import Chosen

EXIT_FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    _check_options(options)
    choose_device(options.device)
    import optuna

    from ..study.config import load_study_file
    from ..study.confirmation import CONFIRMED_KEY
    from .selection import choose, read_recipe

    config = load_study_file(options.study).on_drawings(
        options.alphabet, options.drawings, options.train
    )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = None if options.recipe else _open_study(config, options)
    if study is not None and options.confirmed and CONFIRMED_KEY not in study.user_attrs:
        raise UserError(
            f"study {config.name} has no confirmed result; measure its best trials again by "
            f"python -m hpo.confirm --study {options.study}"
        )
    chosen = read_recipe(options.recipe) if study is None else choose(study, options.trial)
    if options.format == "json":
        _write(options.out, chosen.recipe.to_json() + "\n", options.force)
        return 0
    return _export(config, study, chosen, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hpo.export",
        description=f"{__doc__} It writes nothing to the study.",
        epilog="Exit codes: 0 written, 1 the proof failed and nothing is written, 2 bad input.",
    )
    add = parser.add_argument
    add("--study", required=True, help="name in studies/, or path of a study file")
    add("--storage", help="database URL (default: the study file's); also $RUNES_STORAGE")
    add_drawings_options(parser, "the study file's")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--trial", type=int, metavar="N", help="default: the confirmed one, else the best"
    )
    which.add_argument("--recipe", type=Path, metavar="FILE", help="a recipe in JSON, of no trial")
    which.add_argument(
        "--confirmed", action="store_true", help="what hpo.confirm named, and nothing else"
    )
    add("--out", type=Path, metavar="FILE", help="the file to write (json: default is to print)")
    add("--format", choices=("python", "json"), default="python", help="json: the recipe alone")
    add("--force", action="store_true", help="replace a file that is there")
    add("--no-challenge", action="store_true", help="do not score the file on held-out runes")
    add("--held-out", type=int, default=5, metavar="N", help="of those runes, at most (default: 5)")
    add("--t-samples", type=int, default=1000, help="passes of the author's estimator")
    add("--device", help="cpu, cuda or cuda:N, of the proof (default: a GPU if there is one)")
    add("--threads", type=int, help="CPU threads of the proof (default: the trial's)")
    return parser


def _check_options(options: argparse.Namespace) -> None:
    for name, least in (("held_out", 1), ("t_samples", 2), ("threads", 1), ("trial", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            word = f"--{name.replace('_', '-')}"
            raise UserError(f"{word} is {value}; write {least} or more")
    if options.out is None:
        if options.format == "python":
            raise UserError("--out is missing; write the file's name, such as finetune.py")
        return
    if options.format == "python" and options.out.suffix != ".py":
        raise UserError(f"--out is {options.out}; write a name that ends in .py")
    _check_free(options.out, options.force)


def _check_free(path: Path, force: bool) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a directory; write a file's name")
    if path.exists() and not force:
        raise UserError(f"{path} is there already; write --force to replace it")


def _open_study(config: StudyConfig, options: argparse.Namespace) -> optuna.Study:
    from ..storage.open import load_study, open_existing

    storage = open_existing(config.storage_url(options.storage), options.study)
    try:
        study = load_study(storage, config.name)
        study.get_trials(deepcopy=False)
    finally:
        storage.engine.dispose()
    return study


def _export(
    config: StudyConfig, study: optuna.Study | None, chosen: Chosen, options: argparse.Namespace
) -> int:
    import torch

    from finetune.challenge import ChallengeFailure
    from finetune.submission.bundle import bundle
    from finetune.submission.joining import JoinError
    from finetune.submission.proof import ProofError

    from ..problem.instances import load_measuring
    from .selection import describe_origin

    check_device(options.device)
    torch.set_num_threads(options.threads or _threads_of(chosen))
    measuring = load_measuring(config, options.data)
    if study is not None:
        _check_same_measure(study, measuring.manifest)
    try:
        code = measuring.manifest["code"]
        text = bundle(chosen.recipe, describe_origin(chosen, config.name, code, options.out.name))
    except JoinError as error:
        raise UserError(f"the modules can't be joined: {error}") from error
    with tempfile.TemporaryDirectory(prefix="export-") as directory:
        submission = Path(directory) / options.out.name
        submission.write_text(text, "utf-8")
        try:
            _prove(submission, config, chosen, measuring)
            if not options.no_challenge:
                _challenge(submission, config, measuring, options)
        except (ProofError, ChallengeFailure) as failure:
            print(f"failed: {failure}; {options.out} is not written", file=sys.stderr)
            return EXIT_FAILED
    _write(options.out, text, options.force)
    print(f"wrote {options.out}: {chosen.name}, {len(text.splitlines())} lines")
    return 0


def _threads_of(chosen: Chosen) -> int:
    """As many as the trial had, where there are so many: then it can agree bit for bit."""
    machine = chosen.trial.user_attrs.get("machine", {}) if chosen.trial else {}
    return min(int(machine.get("threads", n_cores())), n_cores())


def _check_same_measure(study: optuna.Study, mine: dict[str, str]) -> None:
    """This code, these drawings and networks are those that the study measured with.

    Raises:
        UserError: something differs; says what.
    """
    from ..study.manifest import MANIFEST_KEY, check_manifest

    theirs = study.user_attrs.get(MANIFEST_KEY, {}).get("code")
    if theirs is not None and theirs != mine["code"]:
        raise UserError(
            f"study {study.study_name} measured with other code ({theirs} there, {mine['code']} "
            "here); run that version, or export the recipe under this one: --format json --out "
            "recipe.json, then --recipe recipe.json"
        )
    check_manifest(study, mine)


def _prove(submission: Path, config: StudyConfig, chosen: Chosen, measuring: Measuring) -> None:
    from finetune.submission.proof import check_call, check_imports, check_same_source, describe

    from ..problem.evaluate import noise_table

    instance, claim = _claimed(chosen, measuring.instances)
    check_imports(submission)
    check_same_source(submission, chosen.recipe, instance)
    print("same source: the file and its modules give the same weights, bit for bit")
    table = noise_table(config, instance, config.estimator.seed)
    proof = check_call(submission, chosen.recipe, instance, table, config.limit_s, claim)
    for line in describe(proof, claim, chosen.recipe, instance.label):
        print(line)


def _claimed(chosen: Chosen, instances: Sequence[Instance]) -> tuple[Instance, Claim | None]:
    """The instance to run the file on, and what the trial measured there."""
    from finetune.submission.proof import Claim

    if chosen.trial is None:
        return instances[0], None
    measured: list[dict[str, Any]] = chosen.trial.user_attrs["instances"]
    by_label = {i.label: i for i in instances}
    # Of those whose schedule the clock left alone, where there is one: those can agree exactly.
    whole = [m for m in measured if m["steps"] == chosen.recipe.steps]
    m = (whole or measured)[0]
    return by_label[m["instance"]], Claim(m["loss"], m["standard_error"], m["steps"])


def held_out(source: RuneSource, config: StudyConfig, most: int) -> list[str]:
    """Runes that the source has and no trial saw, at most so many, spread evenly."""
    seen = config.instances.runes or source.runes
    unseen = [rune for rune in source.runes if rune not in seen]
    n = min(most, len(unseen))
    return [unseen[i * len(unseen) // n] for i in range(n)]


def _challenge(
    submission: Path, config: StudyConfig, measuring: Measuring, options: argparse.Namespace
) -> None:
    from finetune.challenge import (
        earns_points,
        load_submission,
        mean_loss,
        points,
        run_challenge,
        table,
    )
    from finetune.model.checkpoints import list_networks

    from ..problem.instances import open_drawings

    source = open_drawings(config, options.data)
    runes = held_out(source, config, options.held_out)
    if not runes:
        print("challenge: left out, because the study's trials saw every rune that there is")
        return
    scores = run_challenge(
        load_submission(submission),
        source,
        runes,
        list_networks(config.instances.pretrained),
        resize=config.instances.resize,
        n_train=config.instances.train,
        t_samples=options.t_samples,
    )
    with_points = earns_points(source, scores)
    print(table(scores, with_points=with_points))
    loss, error = mean_loss(scores)
    worth = f"{points(loss)} points, " if with_points else ""
    print(
        f"challenge: {worth}loss {loss:.4f} ± {error:.4f} on {len(runes)} held-out "
        f"rune{'' if len(runes) == 1 else 's'}"
    )


def _write(path: Path | None, text: str, force: bool) -> None:
    """Write beside the file and rename, or print where there is no name.

    Raises:
        UserError: it is there already, or can't be written.
    """
    if path is None:
        print(text, end="")
        return
    _check_free(path, force)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, "utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"{path} can't be written: {error.strerror}") from error


if __name__ == "__main__":
    run_command(main)
