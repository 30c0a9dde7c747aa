"""Write the one file that is handed in, with proof that it scores what the study says."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import DeviceOptions, DrawingsOptions, StudyOptions, option, parse
from ..errors import EXIT_FAILED, UserError, run_command
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


@dataclass(frozen=True, kw_only=True)
class ExportOptions(DeviceOptions, DrawingsOptions, StudyOptions):
    """Which recipe becomes a file, and how the file is proved."""

    trial: int | None = option(
        "default: the confirmed one, else the best", None, excludes="recipe", least=0, metavar="N"
    )
    recipe: Path | None = option(
        "a recipe in JSON, of no trial", None, excludes="recipe", metavar="FILE"
    )
    confirmed: bool = option("what hpo.confirm named, and nothing else", False, excludes="recipe")
    out: Path | None = option("the file to write (json: default is to print)", None, metavar="FILE")
    format: str = option("python, or json: the recipe alone", "python", choices=("python", "json"))
    force: bool = option("replace a file that is there", False)
    no_challenge: bool = option("do not score the file on held-out runes", False)
    held_out: int = option("of those runes, at most", 5, least=1, metavar="N")
    t_samples: int = option("passes of the author's estimator", 1000, least=2)
    threads: int | None = option(
        "CPU threads of the proof (default: the trial's)", None, variable=True, above=0
    )

    def __post_init__(self) -> None:
        if self.out is None:
            if self.format == "python":
                raise UserError("--out is missing; write the file's name, such as finetune.py")
            return
        if self.format == "python" and self.out.suffix != ".py":
            raise UserError(f"--out is {self.out}; write a name that ends in .py")
        _check_free(self.out, self.force)


def main(argv: Sequence[str] | None = None) -> int:
    description = f"{__doc__} It writes nothing to the study."
    epilog = "Exit codes: 0 written, 1 the proof failed and nothing is written, 2 bad input."
    options = parse(ExportOptions, argv, "export", description, epilog)
    choose_device(options.device)
    import optuna

    from ..study.config import load_study_file
    from ..study.confirmation import CONFIRMED_KEY
    from .selection import choose, read_recipe

    config = load_study_file(options.study).on_drawings(
        options.alphabet, options.drawings, options.train
    )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if options.recipe is not None:
        study, chosen = None, read_recipe(options.recipe)
    else:
        study = _open_study(config, options)
        if options.confirmed and CONFIRMED_KEY not in study.user_attrs:
            raise UserError(
                f"study {config.name} has no confirmed result; measure its best trials again by "
                f"python -m hpo.confirm --study {options.study}"
            )
        chosen = choose(study, options.trial)
    if options.out is None or options.format == "json":
        _write(options.out, chosen.recipe.to_json() + "\n", options.force)
        return 0
    return _export(config, study, chosen, options.out, options)


def _check_free(path: Path, force: bool) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a directory; write a file's name")
    if path.exists() and not force:
        raise UserError(f"{path} is there already; write --force to replace it")


def _open_study(config: StudyConfig, options: ExportOptions) -> optuna.Study:
    from ..storage.open import load_study, open_existing

    storage = open_existing(config.storage_url(options.storage), options.study)
    try:
        study = load_study(storage, config.name)
        study.get_trials(deepcopy=False)
    finally:
        storage.database.engine.dispose()
    return study


def _export(
    config: StudyConfig,
    study: optuna.Study | None,
    chosen: Chosen,
    out: Path,
    options: ExportOptions,
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
        text = bundle(chosen.recipe, describe_origin(chosen, config.name, code, out.name))
    except JoinError as error:
        raise UserError(f"the modules can't be joined: {error}") from error
    with tempfile.TemporaryDirectory(prefix="export-") as directory:
        submission = Path(directory) / out.name
        submission.write_text(text, "utf-8")
        try:
            _prove(submission, config, chosen, measuring)
            if not options.no_challenge:
                _challenge(submission, config, measuring, options)
        except (ProofError, ChallengeFailure) as failure:
            print(f"failed: {failure}; {out} is not written", file=sys.stderr)
            return EXIT_FAILED
    _write(out, text, options.force)
    print(f"wrote {out}: {chosen.name}, {len(text.splitlines())} lines")
    return 0


def _threads_of(chosen: Chosen) -> int:
    """As many as the trial had, where there are so many: then it can agree bit for bit."""
    machine = chosen.trial.record.machine if chosen.trial else None
    threads = None if machine is None else machine.threads
    return min(threads or n_cores(), n_cores())


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

    by_label = {i.label: i for i in instances}
    claims = [
        (by_label[call.instance], Claim(call.loss, call.standard_error, call.steps))
        for call in (chosen.trial.calls if chosen.trial else ())
        if call.instance in by_label and call.standard_error is not None and call.steps is not None
    ]
    if not claims:
        return instances[0], None
    # Of those whose schedule the clock left alone, where there is one: those can agree exactly.
    return next((c for c in claims if c[1].steps == chosen.recipe.steps), claims[0])


def held_out(source: RuneSource, config: StudyConfig, most: int) -> list[str]:
    """Runes that the source has and no trial saw, at most so many, spread evenly."""
    seen = config.instances.runes or source.runes
    unseen = [rune for rune in source.runes if rune not in seen]
    n = min(most, len(unseen))
    return [unseen[i * len(unseen) // n] for i in range(n)]


def _challenge(
    submission: Path, config: StudyConfig, measuring: Measuring, options: ExportOptions
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
