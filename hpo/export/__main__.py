"""Write the one file that is handed in, with proof that it scores what the study says."""

from __future__ import annotations

import difflib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import DeviceOptions, DrawingsOptions, StudyOptions, option, parse
from ..errors import EXIT_FAILED, UserError, check_out, printable, run_command, write_whole
from ..process.devices import choose_device, n_cores

# Imported late: torch takes seconds to import, and `--help` and `--format json` do not need it;
# `--help` does not need Optuna either.
if TYPE_CHECKING:
    import optuna

    from ..problem.base import Method, Values
    from ..study.config import StudyConfig
    from .selection import Chosen


@dataclass(frozen=True, kw_only=True)
class ExportOptions(DeviceOptions, DrawingsOptions, StudyOptions):
    """Options: which recipe is exported, and how the file is proved."""

    trial: int | None = option(
        "default: the confirmed one, else the best", None, excludes="recipe", least=0, metavar="N"
    )
    recipe: Path | None = option(
        "a recipe in JSON, of no trial", None, excludes="recipe", metavar="FILE"
    )
    confirmed: bool = option("what hpo.confirm named, and nothing else", False, excludes="recipe")
    out: Path | None = option("the file to write (json: default is to print)", None, metavar="FILE")
    format: str = option("python, or json: the recipe alone", "python", choices=("python", "json"))
    diff: bool = option(
        "print how the file differs from the one of the default values; writes nothing unless "
        "--out is there",
        False,
    )
    force: bool = option("replace a file that is there", False)
    no_challenge: bool = option("do not score the file on held-out runes", False)
    held_out: int = option("of those runes, at most", 5, least=1, metavar="N")
    t_samples: int = option("passes of the author's estimator", 1000, least=2)
    threads: int | None = option(
        "CPU threads of the proof (default: the trial's)", None, variable=True, above=0
    )

    def __post_init__(self) -> None:
        if self.out is None:
            if self.format == "python" and not self.diff:
                raise UserError("--out is missing; write the file's name, such as finetune.py")
            return
        if self.format == "python" and self.out.suffix != ".py":
            raise UserError(f"--out is {self.out}; write a name that ends in .py")
        _check_free(self.out, self.force)


def main(argv: Sequence[str] | None = None) -> int:
    description = f"{__doc__} It writes nothing to the study."
    epilog = "Exit code 1: the proof failed, and nothing is written."
    options = parse(ExportOptions, argv, "export", description, epilog)
    choose_device(options.device)
    import optuna

    from ..storage.url import study_argument
    from ..study.config import load_study_file
    from ..study.confirmation import CONFIRMED_KEY
    from .selection import choose, read_recipe

    config = load_study_file(options.study).on_drawings(
        options.alphabet, options.drawings, options.train
    )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    method = config.load_method()
    if options.recipe is not None:
        study, chosen = None, read_recipe(options.recipe, method)
    else:
        study = _open_study(config, options)
        if options.confirmed and CONFIRMED_KEY not in study.user_attrs:
            raise UserError(
                f"study {config.name} has no confirmed result; measure its best trials again by "
                f"python -m hpo.confirm --study {study_argument(options.study, options.storage)}"
            )
        chosen = choose(study, options.trial, method)
    if options.diff:
        _print_diff(method, chosen, options.out)
        if options.out is None:
            return 0
    if options.out is None or options.format == "json":
        _write(options.out, json.dumps(dict(chosen.recipe), indent=2) + "\n", options.force)
        return 0
    return _export(config, study, chosen, options.out, options)


def _print_diff(method: Method, chosen: Chosen, out: Path | None) -> None:
    """Print how a recipe's values change the file, in the form of ``diff -u``."""
    before, after = (_text(method, values, "") for values in (method.complete({}), chosen.recipe))
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "default", str(out or chosen.name), lineterm=""
    )
    print("\n".join(lines))


def _text(method: Method, values: Values, about: str) -> str:
    from ..problem.base import ExportError

    try:
        return method.export(values, about)
    except ExportError as error:
        raise UserError(str(error)) from error


def _check_free(path: Path, force: bool) -> None:
    check_out(path)
    if path.exists() and not force:
        raise UserError(f"{path} is there already; write --force to replace it")


def _open_study(config: StudyConfig, options: ExportOptions) -> optuna.Study:
    from ..storage.open import load_study, open_existing
    from ..storage.url import study_argument

    named = study_argument(options.study, options.storage)
    storage = open_existing(config.storage_url(options.storage), named)
    try:
        study = load_study(storage, config.name)
        study.get_trials(deepcopy=False)
    finally:
        storage.engine.dispose()
    return study


def _export(
    config: StudyConfig,
    study: optuna.Study | None,
    chosen: Chosen,
    out: Path,
    options: ExportOptions,
) -> int:
    from ..problem.base import ProofError
    from ..study.manifest import make_manifest
    from .selection import claims_of, describe_origin

    method, problem = config.load_method(), config.load_problem(options.data)
    method.prepare(options.device, options.threads or _threads_of(chosen))
    manifest = make_manifest(config, problem)
    if study is not None:
        _check_same_measure(study, manifest)
    about = describe_origin(chosen, config.name, manifest["code"], out.name)
    text = _text(method, chosen.recipe, about)
    with tempfile.TemporaryDirectory(prefix="export-") as directory:
        file = Path(directory) / out.name
        file.write_bytes(text.encode())  # bytes, so that line ends stay as they are
        try:
            claims = claims_of(chosen)
            for line in method.prove(file, chosen.recipe, problem, config.limit_s, claims):
                print(printable(line))
            if not options.no_challenge:
                for line in problem.challenge(file, options.held_out, options.t_samples):
                    print(line)
        except ProofError as failure:
            print(printable(f"failed: {failure}; {out} is not written"), file=sys.stderr)
            return EXIT_FAILED
    _write(out, text, options.force)
    print(f"wrote {out}: {chosen.name}, {len(text.splitlines())} lines")
    return 0


def _threads_of(chosen: Chosen) -> int:
    """The trial's number of threads if this machine has so many: losses can then agree exactly."""
    machine = chosen.trial.record.machine if chosen.trial else None
    threads = None if machine is None else machine.threads
    return min(threads or n_cores(), n_cores())


def _check_same_measure(study: optuna.Study, mine: dict[str, str]) -> None:
    """Check that code, drawings and networks are those that the study measured with.

    Raises:
        UserError: something differs; the message says what.
    """
    from ..study.manifest import check_manifest, read_manifest

    theirs = read_manifest(study.user_attrs).get("code")
    if theirs is not None and theirs != mine["code"]:
        raise UserError(
            f"study {study.study_name} measured with other code ({theirs} there, {mine['code']} "
            "here); run that version, or export the recipe under this one: --format json --out "
            "recipe.json, then --recipe recipe.json"
        )
    check_manifest(study, mine)


def _write(path: Path | None, text: str, force: bool) -> None:
    """Write the file, or print it if there is no path.

    Raises:
        UserError: the file exists already, or can't be written.
    """
    if path is None:
        print(text, end="")
        return
    _check_free(path, force)
    write_whole(path, text.encode())


if __name__ == "__main__":
    run_command(main)
