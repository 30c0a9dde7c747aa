"""A PostgreSQL server with the users of deploy/roles.sql; the compose file, filled in."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.postgres import Postgres
from tests.cheap import CHEAP_TOML

REPO = Path(__file__).parents[2]
COMPOSE = REPO / "docker-compose.yml"
_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def roles() -> dict[str, str]:
    """Passwords of the users of `url`, by user."""
    return {f"runes_{role}": f"{role}-secret-7" for role in ("owner", "worker", "reader")}


@pytest.fixture(scope="session")
def make_roles(postgres: Postgres) -> Callable[[str, Mapping[str, str]], None]:
    """Runs deploy/roles.sql as the image does: as the superuser, through a socket."""

    def make(database: str, passwords: Mapping[str, str]) -> None:
        command = [str(postgres.programs / "psql"), "-h", str(postgres.directory)]
        command += ["-p", str(postgres.port), "-U", "postgres", "-d", database]
        done = subprocess.run(
            [*command, "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "-f", "deploy/roles.sql"],
            cwd=REPO,
            env={"PATH": os.environ["PATH"]}
            | {f"{user.upper()}_PASSWORD": word for user, word in passwords.items()},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    return make


@pytest.fixture
def database(
    postgres: Postgres,
    roles: dict[str, str],
    make_roles: Callable[[str, Mapping[str, str]], None],
) -> str:
    """The name of an empty database that belongs to runes_owner."""
    name = f"deployed_{next(_NUMBERS)}"
    postgres.sql(f'CREATE DATABASE "{name}"')
    make_roles(name, roles)
    return name


@dataclass(frozen=True)
class Url:
    """Makes URLs of a database, one for each user."""

    postgres: Postgres
    database: str
    roles: Mapping[str, str]

    def __call__(self, user: str, query: str = "") -> str:
        where = f"127.0.0.1:{self.postgres.port}/{self.database}"
        return f"postgresql://{user}:{self.roles[user]}@{where}{query}"


@pytest.fixture
def url(postgres: Postgres, database: str, roles: dict[str, str]) -> Url:
    return Url(postgres, database, roles)


_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """What compose makes of ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?reason}``."""
    if isinstance(value, dict):
        return {k: interpolate(v, variables) for k, v in value.items()}
    if isinstance(value, list):
        return [interpolate(v, variables) for v in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        name, kind, word = match.groups()
        if variables.get(name):
            return variables[name]
        if kind == "?":
            raise KeyError(f"{name} {word}")
        return word or ""

    return _VARIABLE.sub(fill, value)


@pytest.fixture
def read_compose() -> Callable[[Mapping[str, str]], dict[str, Any]]:
    """Reads the compose file and fills in variables as compose does."""

    def read(variables: Mapping[str, str]) -> dict[str, Any]:
        return dict(interpolate(yaml.safe_load(COMPOSE.read_text()), variables))

    return read


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """Those of .env as the line in docs/machines.md makes it, in the test's directory."""
    text = (REPO / "docs" / "machines.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    (command,) = [block for block in blocks if "> .env" in block]
    shutil.copy(REPO / ".env.example", tmp_path)
    subprocess.run(["sh", "-euc", command], cwd=tmp_path, check=True)
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    lines = (tmp_path / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and line[0] != "#")


@pytest.fixture(scope="session")
def study_text() -> Callable[..., str]:
    """A study of a method without torch, as a file; in a slow one only a signal ends a call."""

    def text(name: str, trials: int = 1, slow: bool = False) -> str:
        return f"""
name = "{name}"
storage = "sqlite:///unused.db"
{CHEAP_TOML}
[instances]
source = "drawn"
runes = ["thorn"]
[budget]
trials = {trials}
[fixed]
steps = {1000 if slow else 2}
step_s = {0.1 if slow else 0.0}
[space.lr]
type = "float"
low = 1e-4
high = 1e-2
"""

    return text
