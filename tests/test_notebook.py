"""The notebook runs from top to bottom on what comes with the package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "runes.ipynb"


def shorter(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Its code cells, executed in order, with fewer steps and a smaller study."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for old, new in [
        ("Recipe(steps=50, ", "Recipe(steps=10, "),
        ('drawings("thorn")', 'drawings("is")'),  # a single stroke
    ]:
        (cell,) = [cell for cell in notebook.cells if old in cell.source]
        cell.source = shorter(cell.source, old, new)
    # A study is looked for here first.
    here = tmp_path_factory.mktemp("notebook")
    (here / "studies").mkdir()
    study = (ROOT / "studies" / "quickstart.toml").read_text()
    for old, new in [
        ("steps = 80", "steps = 5"),
        ("strata = 20", "strata = 5"),
        ("limit_s = 35.0", 'limit_s = 35.0\nartifacts = "none"'),  # pictures take seconds
    ]:
        study = shorter(study, old, new)
    (here / "studies" / "quickstart.toml").write_text(study)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RUNES_")]:
            patch.delenv(name)
        client = NotebookClient(
            notebook,
            timeout=300,
            kernel_name="python3",
            resources={"metadata": {"path": str(here)}},
        )
        client.execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(cell: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def printed(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)


def test_it_shows_drawings_and_samples_and_what_the_study_found(cells: list[Any]) -> None:
    assert sum(map(pictures, cells)) == 3  # and Optuna's plot
    text = "".join(map(printed, cells))
    assert "drawn anew along the path of the pen: 0." in text
    assert "Study quickstart" in text  # the worker's summary
    assert "best so far: 0." in text


def test_the_package_offers_the_challenges_call() -> None:
    import finetune
    from finetune.adapt import finetune_model

    assert finetune.finetune_model is finetune_model
    with pytest.raises(AttributeError, match="has no attribute 'fine_tune'"):
        finetune.fine_tune  # noqa: B018
