"""Commands work wherever they are started, and documents name what there is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from hpo.trial.outcome import Outcome

REPO = Path(__file__).parents[2]


def test_a_file_to_hand_in_where_one_works_is_in_nobodys_way(tmp_path: Path) -> None:
    shutil.copy(REPO / "submission" / "finetune.py", tmp_path / "finetune.py")
    environment = dict(os.environ, PYTHONPATH=str(REPO))
    for command in ("status", "worker"):
        done = subprocess.run(
            [sys.executable, "-m", f"hpo.{command}", "--study", "none"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: no study 'none'"), done.stderr


def test_the_documents_advise_no_name_that_hides_the_package() -> None:
    for path in [REPO / "README.md", *REPO.glob("docs/*.md"), *REPO.glob("hpo/**/*.py")]:
        assert not re.search(r"--out finetune\.py", path.read_text("utf-8")), path


def test_every_outcome_is_in_the_document_of_workers() -> None:
    text = (REPO / "docs" / "workers.md").read_text("utf-8")
    assert re.findall(r"^\| `([a-z ]+)` \| [A-Z]+ \|", text, re.MULTILINE) == [
        *map(str, (Outcome.COMPLETE, Outcome.PRUNED, Outcome.INFEASIBLE, Outcome.NOT_FINITE)),
        *map(str, (Outcome.OUT_OF_TIME, Outcome.OUT_OF_MEMORY, Outcome.CRASHED)),
        *map(str, (Outcome.LOST_WORKER, Outcome.BUG)),
    ]
    assert len(Outcome) == 9


def test_the_command_for_the_networks_of_the_seeds_study_is_one_that_is_taken() -> None:
    from finetune.pretrain import _seeds

    path = REPO / "studies" / "runes-seeds.toml"
    (given,) = re.findall(r"finetune\.pretrain .*--seeds (.*) --epochs", path.read_text())
    assert _seeds(given) == [2, 3]
