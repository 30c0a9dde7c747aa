"""The Dockerfile, what it installs, and what goes into it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
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
    own = ["studies /app/studies", "examples /app/examples"]
    assert copied == ["--from=builder /venv /venv", *own]


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


def test_the_package_builds_from_what_the_image_gets_and_runs_alone(tmp_path: Path) -> None:
    rules = [r for r in (REPO / ".dockerignore").read_text().splitlines() if r and r[0] != "#"]
    assert rules[0] == "*"
    context = tmp_path / "context"
    for rule in (r.removeprefix("!") for r in rules if r[0] == "!"):
        for source in REPO.glob(rule):
            target = context / source.relative_to(REPO)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
    assert {path.name for path in context.iterdir()} == {
        *("README.md", "pyproject.toml", "deploy", "studies", "examples"),
        *("finetune", "hpo", "benchmarks"),
    }
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", installed, "."], cwd=context, check=True)
    app = tmp_path / "app"
    shutil.copytree(context / "studies", app / "studies")
    shutil.rmtree(context)
    code = "import sys, hpo.init; print(hpo.__file__); sys.exit(hpo.init.main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--study", "quickstart", "--storage", "sqlite:///q.db"],
        cwd=app,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    where, line = done.stdout.splitlines()
    assert Path(where).is_relative_to(installed)
    assert line.startswith("study quickstart is ready in sqlite:///q.db: 2 instances")
