"""The Dockerfile, what it installs, and what goes into it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions and their values of each stage, by its name."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in DockerfileParser(str(REPO / "Dockerfile")).structure:
        if line["instruction"] == "FROM":
            steps = found[line["value"].split(" AS ")[1]] = []
        if line["instruction"] != "COMMENT":
            steps.append((line["instruction"], line["value"]))
    return found


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "Dockerfile"], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_bases_are_pinned_and_what_builds_is_left_behind(
    stages: dict[str, list[tuple[str, str]]],
) -> None:
    bases = {name: steps[0][1].split(" AS ")[0] for name, steps in stages.items()}
    assert (bases["cpu"], bases["cuda"]) == ("runtime", "runtime")
    assert bases["builder"] == bases["runtime"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", bases["runtime"])
    copied = [value for step, value in stages["runtime"] if step == "COPY"]
    assert copied == ["--from=builder /venv /venv"]  # studies and examples are in it


def test_it_does_not_run_as_root(stages: dict[str, list[tuple[str, str]]]) -> None:
    (user,) = [value for step, value in stages["runtime"] if step == "USER"]
    assert int(user.split(":")[0]) > 0
    (made,) = [v for step, v in stages["runtime"] if step == "RUN" and "useradd" in v]
    assert f"--uid {user.split(':')[0]} " in made
    services = yaml.safe_load((REPO / "docker-compose.yml").read_text())["services"]
    volumes = [v for name in ("init", "worker", "dashboard") for v in services[name]["volumes"]]
    written = {v.split(":")[1] for v in volumes if not v.endswith(":ro")}
    # What it writes to belongs to it: a new volume takes its owner from the image.
    assert written == {"/cache", "/artifacts"} <= set(re.findall(r"(?<= )/\w+", made))


def test_the_cuda_build_refuses_a_torch_without_cuda(
    stages: dict[str, list[tuple[str, str]]],
) -> None:
    (check,) = [value for step, value in stages["cuda"] if step == "RUN"]
    program = check.removeprefix('python -c "').removesuffix('"')
    assert program.startswith("import sys, torch;")
    for version, code in (("None", 1), ("'13.0'", 0)):
        fake = f"import sys; torch = type('', (), {{'cuda': {version}}}); torch.version = torch;"
        changed = program.replace("import sys, torch;", fake)
        done = subprocess.run([sys.executable, "-c", changed], capture_output=True, text=True)
        assert done.returncode == code
        assert ("--build-arg TORCH_INDEX=URL" in done.stderr) == bool(code)


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    scripts = sorted((REPO / "deploy").rglob("*.sh")) + sorted((REPO / "deploy").rglob("*.sbatch"))
    assert len(scripts) == 3
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def _installed(name: str) -> str | None:
    """The release of a library; None if it is not here, as those of extras need not be."""
    try:
        return Version(importlib.metadata.version(name)).public
    except importlib.metadata.PackageNotFoundError:
        return None


def test_every_library_is_installed_in_one_version_that_the_project_allows() -> None:
    lines = (REPO / "deploy" / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and line[0] != "#")
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    s3 = project["optional-dependencies"]["s3"]
    queue = [Requirement(text) for text in (*project["dependencies"], *s3)]
    needed, are_known = set(), True
    while queue:
        wanted = queue.pop()
        name = canonicalize_name(wanted.name)
        assert name in pins, f"deploy/requirements.txt lacks {name}"
        assert wanted.specifier.contains(pins[name]), f"{wanted} is not {pins[name]}"
        if (name, *wanted.extras) in needed:
            continue
        needed.add((name, *wanted.extras))
        # What a release needs is read off the one that is installed here, if it is that one.
        if _installed(name) != pins[name]:
            are_known = False
            continue
        for text in importlib.metadata.requires(name) or []:
            inner = Requirement(text)
            extras = [{"extra": extra} for extra in ("", *wanted.extras)]
            # NVIDIA's libraries are torch's own choice, in exact versions.
            if name == "torch" and re.match("nvidia|cuda|triton", inner.name):
                continue
            if inner.marker is None or any(inner.marker.evaluate(extra) for extra in extras):
                queue.append(inner)
    named = {name for name, *_ in needed}
    assert named == set(pins) if are_known else named <= set(pins)


@pytest.fixture(scope="module")
def runes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The console script of the wheel, in an environment of its own, and its variables.

    The wheel is built from what the image gets. Its dependencies are those of this environment.
    """
    here = tmp_path_factory.mktemp("wheel")
    rules = [r for r in (REPO / ".dockerignore").read_text().splitlines() if r and r[0] != "#"]
    assert rules[0] == "*"
    context = here / "context"
    for rule in (r.removeprefix("!") for r in rules if r[0] == "!"):
        for source in REPO.glob(rule):
            target = context / source.relative_to(REPO)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, target, ignore=ignored, symlinks=True)
            else:
                shutil.copy(source, target)
    assert {path.name for path in context.iterdir()} == {
        *("README.md", "LICENSE", "pyproject.toml", "deploy", "studies", "examples"),
        *("finetune", "hpo"),
    }
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-cache-dir"]
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", here, "."]
    subprocess.run([*pip, *build], cwd=context, check=True)
    (wheel,) = here.glob("*.whl")
    shutil.rmtree(context)
    environment = here / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    install = ["--python", python, "install", "--no-deps", "--no-index", "--no-compile", wheel]
    subprocess.run([*pip, *install], check=True)
    variables = {k: v for k, v in os.environ.items() if not k.startswith("RUNES_")}
    # Without the links (.pth) in it, so that it has no package of this project.
    variables["PYTHONPATH"] = sysconfig.get_path("purelib")
    return environment / "bin" / "runes", variables


def _run(runes: tuple[Path, dict[str, str]], where: Path, *argv: str) -> tuple[str, str]:
    script, variables = runes
    done = subprocess.run([script, *argv], cwd=where, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_the_wheel_runs_a_study_in_an_empty_folder(
    runes: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    named = ("--study", "quickstart")
    _, log = _run(runes, tmp_path, "worker", *named, "--trials", "1", "--threads", "1")
    assert "done: 1 trials are finished" in log
    assert (tmp_path / "quickstart.db").is_file()
    out, _ = _run(runes, tmp_path, "status", *named)
    assert "trials      1 finished" in out
    # A page with the reference results, by the template that comes with it.
    _run(runes, tmp_path, "report", *named, "--out", "report.html")


def test_the_wheel_finds_the_example_that_a_study_of_it_names(
    runes: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    # The file's parameters are read as the study is; only then the database is missed.
    script, variables = runes
    status = [script, "status", "--study", "plain-quickstart"]
    done = subprocess.run(status, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 2
    assert "/plain-quickstart.db): no such database" in done.stderr


def test_the_wheel_holds_the_packages_alone_and_what_they_read(
    runes: tuple[Path, dict[str, str]],
) -> None:
    (packages,) = (runes[0].parents[1] / "lib").glob("*/site-packages")
    installed = {path.name for path in packages.iterdir()}
    assert {name for name in installed if "." not in name} == {"finetune", "hpo"}
    studies = packages / "hpo" / "studies"
    theirs = {path.relative_to(studies) for path in studies.rglob("*") if path.is_file()}
    tracked = REPO / "studies"
    ours = {path.relative_to(tracked) for path in tracked.rglob("*") if path.is_file()}
    databases = {path for path in ours if path.name.endswith(".db.gz")}
    assert theirs == ours - databases
    (licence,) = packages.glob("runes-*.dist-info/licenses/LICENSE")
    assert licence.read_text().startswith("MIT License")
