"""deploy/kubernetes: by Kubernetes' schemas, and what its pods run against a real server."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kubernetes_validate import validate

from benchmarks.postgres import Postgres
from hpo.storage.open import load_study, open_storage

if TYPE_CHECKING:
    from tests.conftest import Nursery

REPO = Path(__file__).parents[2]
FILES = sorted((REPO / "deploy" / "kubernetes").glob("*.yaml"))


def read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((REPO / "deploy" / "kubernetes" / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("version", ["1.30.0", "1.34.0"])
def test_it_is_as_kubernetes_schema_says(path: Path, version: str) -> None:
    validate(yaml.safe_load(path.read_text()), version, strict=True)


def test_there_is_one_of_each() -> None:
    kinds = sorted(yaml.safe_load(path.read_text())["kind"] for path in FILES)
    assert kinds == ["ConfigMap", "Deployment", "Deployment", "Job", "Secret"]


def test_the_secret_holds_none() -> None:
    for value in read("secret.template")["stringData"].values():
        assert re.fullmatch(r"\$\{RUNES_\w+\}", value)
    assert "PASSWORD@" not in (REPO / "deploy" / "kubernetes" / "settings.yaml").read_text()


@pytest.mark.parametrize("name", ["init", "worker", "dashboard"])
def test_pods_have_no_rights_that_they_do_not_need(name: str) -> None:
    pod = read(name)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert f"USER {pod['securityContext']['runAsUser']}:" in (REPO / "Dockerfile").read_text()
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "memory" in container["resources"]["limits"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_study_files_come_from_a_config_map_and_else_from_the_image() -> None:
    head = (REPO / "deploy" / "kubernetes" / "settings.yaml").read_text()
    (name,) = re.findall(r"kubectl create configmap (\S+) --from-file=studies/", head)
    for pod in (read(n)["spec"]["template"]["spec"] for n in ("init", "worker", "dashboard")):
        (volume,) = [v for v in pod["volumes"] if v["name"] == "studies"]
        assert volume["configMap"] == {"name": name, "optional": True}
        (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "studies"]
        # Where a name is looked for first: in studies/, from where a command is started.
        assert (mount["mountPath"], mount["readOnly"]) == (f"{workdir()}/studies", True)


def workdir() -> str:
    lines = (REPO / "Dockerfile").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith("WORKDIR")][-1]


def test_a_worker_has_time_to_hand_back_and_as_many_threads_as_cpus() -> None:
    pod = read("worker")["spec"]["template"]["spec"]
    compose = yaml.safe_load((REPO / "docker-compose.yml").read_text())
    grace = compose["services"]["worker"]["stop_grace_period"]
    assert f"{pod['terminationGracePeriodSeconds']}s" == grace
    (container,) = pod["containers"]
    threads = {e["name"]: e.get("value") for e in container["env"]}["RUNES_THREADS"]
    assert threads == container["resources"]["limits"]["cpu"]


def test_a_job_makes_the_study_and_a_pod_finishes_it(
    postgres: Postgres,
    database: str,
    url: Callable[[str], str],
    roles: Mapping[str, str],
    study_text: Callable[..., str],
    tmp_path: Path,
    cheap_nursery: Nursery,
) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "runes.toml").write_text(study_text("tiny"))
    secrets = {user.removeprefix("runes_"): word for user, word in roles.items()}
    for name in ("init", "worker"):
        (container,) = read(name)["spec"]["template"]["spec"]["containers"]
        environment = values_of(container, secrets)
        storage = environment["RUNES_STORAGE"]
        assert "@HOST/runes?sslmode=verify-full&" in storage
        # The test's server is another database, and has no TLS (tests/deploy/test_tls.py has it).
        environment["RUNES_STORAGE"] = storage.split("/runes?")[0] + f"/{database}"
        done = cheap_nursery.run(
            ["-m", *container["args"]],
            tmp_path,
            {
                "PATH": os.environ["PATH"],
                "PGHOSTADDR": "127.0.0.1",
                "PGPORT": str(postgres.port),
                **environment,
            },
        )
        assert done.returncode == 0, done.stderr
    (trial,) = load_study(open_storage(url("runes_reader")), "tiny").trials
    assert trial.state.name == "COMPLETE"


def values_of(container: dict[str, Any], secrets: Mapping[str, str]) -> dict[str, str]:
    """A container's environment, from the ConfigMap and from a Secret of these values."""
    found = {}
    for entry in container["env"]:
        source = entry.get("valueFrom", {})
        if "configMapKeyRef" in source:
            found[entry["name"]] = read("settings")["data"][source["configMapKeyRef"]["key"]]
        elif "secretKeyRef" in source:
            key = source["secretKeyRef"]["key"]
            assert key in read("secret.template")["stringData"]
            found[entry["name"]] = secrets[key]
        else:
            found[entry["name"]] = entry["value"]
    return found


def test_the_dashboard_listens_where_only_a_forwarded_port_leads(tmp_path: Path) -> None:
    (container,) = read("dashboard")["spec"]["template"]["spec"]["containers"]
    assert not any(argument.startswith("--host") for argument in container["args"])
    assert "ports" not in container
    known = {entry["name"] for entry in container["env"]}
    used = {m for a in container["args"] for m in re.findall(r"\$\((\w+)\)", a)}
    assert used <= known
    values_of(container, {"reader": "x", "dashboard-token": "y"})
