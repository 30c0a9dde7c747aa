"""The service knows what it tunes through `hpo.problem` alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
MAY = ("hpo/problem/", "hpo/errors.py")  # errors have one home for both packages


def imported(path: Path) -> set[str]:
    """Top-level packages that a module names in its imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_nothing_else_imports_finetune() -> None:
    importers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "hpo").rglob("*.py")
        if "finetune" in imported(path)
    }
    assert "hpo/problem/runes.py" in importers
    assert [name for name in importers if not name.startswith(MAY)] == []


def test_a_study_of_another_method_runs_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from hpo.worker.options import WorkerOptions; "
        "from hpo.worker.run import run_worker; "
        f"options = WorkerOptions(study={str(ROOT / 'tests' / 'cheap.toml')!r}, trials=3, "
        f"storage='sqlite:///{tmp_path}/s.db', artifacts='none'); "
        "code = run_worker(options); sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "3 trials finished" in done.stdout
