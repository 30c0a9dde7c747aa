"""docker-compose.yml: by its schema, by docker where it is, and what it lets in and out."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).parents[2]

Read = Callable[[Mapping[str, str]], dict[str, Any]]


def test_it_is_as_the_compose_specification_says() -> None:
    command = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [sys.executable, *command, "docker-compose.yml"], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("profile", ["cpu", "gpu", "tools"])
def test_docker_understands_it(tmp_path: Path, variables: dict[str, str], profile: str) -> None:
    plugin = ["docker", "compose"]
    if not shutil.which("docker") or subprocess.run([*plugin, "version"]).returncode:
        pytest.skip("needs docker compose")
    files = ["--env-file", str(tmp_path / ".env"), "-f", str(REPO / "docker-compose.yml")]
    subprocess.run([*plugin, *files, "--profile", profile, "config", "-q"], check=True)


def test_secrets_are_made_and_none_stands_in_the_file(
    variables: dict[str, str], read_compose: Read
) -> None:
    secrets = {k: v for k, v in variables.items() if re.search("PASSWORD|TOKEN", k)}
    assert len(secrets) == 5
    assert len(set(secrets.values())) == 5
    assert min(map(len, secrets.values())) >= 32
    used = set()
    for service in read_compose(variables)["services"].values():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN", key):
                assert value in secrets.values()
                used.add(value)
    assert used == set(secrets.values())
    for name in secrets:
        with pytest.raises(KeyError, match=rf"{name} is empty; write one into \.env"):
            read_compose(variables | {name: ""})


def test_only_this_machine_reaches_it_unless_it_is_told_otherwise(
    variables: dict[str, str], read_compose: Read
) -> None:
    services = read_compose(variables)["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert sorted(ports) == ["127.0.0.1:5432:5432", "127.0.0.1:8080:8080"]
    assert "--allow-writes" not in services["dashboard"]["command"]
    assert "runes_reader@" in services["dashboard"]["environment"]["RUNES_STORAGE"]


def test_study_files_come_from_a_folder_that_is_mounted(
    variables: dict[str, str], read_compose: Read
) -> None:
    for where, more in (("./studies", {}), ("/home/me/studies", {"STUDIES": "/home/me/studies"})):
        services = read_compose(variables | more)["services"]
        for name in ("init", "worker", "worker-gpu", "dashboard"):
            assert f"{where}:/app/studies:ro" in services[name]["volumes"]


def test_workers_on_gpus_differ_in_nothing_else(
    variables: dict[str, str], read_compose: Read
) -> None:
    services = read_compose(variables)["services"]
    cpu, gpu = services["worker"], services["worker-gpu"]
    assert {k for k in gpu if gpu[k] != cpu.get(k)} == {"image", "build", "profiles", "deploy"}
    assert (cpu["profiles"], gpu["profiles"]) == (["cpu"], ["gpu"])
    assert (cpu["build"]["target"], gpu["build"]["target"]) == ("cpu", "cuda")


def test_foreign_images_are_of_one_content(variables: dict[str, str], read_compose: Read) -> None:
    images = {service["image"] for service in read_compose(variables)["services"].values()}
    (foreign,) = images - {"runes:cpu", "runes:cuda"}
    assert re.fullmatch(r"postgres:18\.\d+-\w+@sha256:[0-9a-f]{64}", foreign)
