"""The file that is handed in, as it stands in the repository, on what comes with the package."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from finetune.challenge import load_submission
from finetune.data.runes import NEW_LABEL, DrawingDataset, Split, open_source, split_drawings
from finetune.model.checkpoints import list_networks, load_network
from finetune.model.groups import with_mean_class
from finetune.scoring.estimators import NoiseTable, estimate

FILE = Path(__file__).parents[1] / "submission" / "finetune.py"


@pytest.fixture(scope="module")
def submission() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("handed_in", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["handed_in"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["handed_in"]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return load_network(list_networks(None)[0])


@pytest.fixture(scope="module")
def split() -> Split:
    return split_drawings(open_source("drawn", None).drawings("thorn", "bilinear"), 0)


def test_it_imports_torch_and_the_standard_library_alone() -> None:
    tree = ast.parse(FILE.read_text("utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None
            names.add(node.module.split(".")[0])
    assert names - set(sys.stdlib_module_names) == {"torch"}


def test_it_says_where_it_comes_from() -> None:
    about = ast.get_docstring(ast.parse(FILE.read_text("utf-8"))) or ""
    assert "of study runes-default" in about and "From trial" in about and "±" in about


def test_a_few_of_its_steps_teach_a_rune(
    submission: ModuleType, network: nn.Module, split: Split
) -> None:
    recipe = submission._Recipe(steps=40, batch_size=16, deadline_s=1000.0)
    model = submission.finetune_model(network, DrawingDataset(split.train), recipe)
    table = NoiseTable(len(split.test), n_strata=10, n_replicates=2)
    before = estimate(with_mean_class(network), split.test, NEW_LABEL, table).mean
    assert estimate(model, split.test, NEW_LABEL, table).mean < 0.7 * before


def test_the_challenges_loader_takes_it_and_the_network_keeps_what_it_was(
    network: nn.Module, split: Split, submission: ModuleType
) -> None:
    assert callable(load_submission(FILE))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    recipe = submission._Recipe(steps=1)
    model = submission.finetune_model(network, split.train[:3], recipe)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    x = torch.rand(2, 1, 28, 28)
    label = torch.full((2,), NEW_LABEL)
    assert model(x, torch.full((2, 1, 1, 1), 0.5), label).shape == x.shape
