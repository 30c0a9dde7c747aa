"""A study of another method and another problem runs as ours does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


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
