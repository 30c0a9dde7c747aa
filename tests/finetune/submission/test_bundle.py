"""The exported file where it lands: other networks, data sets, machines and settings."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.adapt import finetune_model
from finetune.data.runes import DrawingDataset, resize_bitmaps
from finetune.data.synthetic import draw_rune
from finetune.model.unet import ConditionalDiffusionUNet
from finetune.recipe import LORA_GROUPS, Recipe
from finetune.scoring.estimators import NoiseTable, estimate
from finetune.submission.bundle import SECTIONS, bundle
from finetune.submission.joining import imported_packages
from tests.settings import torch_threads

RECIPE = Recipe(steps=6, batch_size=4, render="direct", precision="fp32", deadline_s=1000.0)
DRAWINGS = resize_bitmaps(draw_rune("is", 4, seed=0), "bilinear")
# Recipes that between them take every branch; those that follow the pen take seconds each.
WARPED = Recipe(render="direct")
VARIETY = {
    "default": Recipe(),
    "lora": replace(WARPED, lora_rank=2, lora_groups=LORA_GROUPS, train_groups=("norm_bias",)),
    "unclipped": replace(WARPED, clip_norm=0.0),
    "linear": replace(WARPED, schedule="linear"),
    "constant": replace(WARPED, schedule="constant"),
    "direct": replace(WARPED, precision="fp32"),
    "still": Recipe(blend=0.0, elastic_px=0.0, bank_images=0),
    "blend": Recipe(blend=0.5),
}
_NUMBERS = itertools.count()


@functools.cache
def one_file(recipe: Recipe, about: str) -> str:
    """The file, made once for all tests: that takes a second."""
    return bundle(recipe, about)


def _block(conv: nn.Module, width: int) -> list[nn.Module]:
    return [conv, nn.GroupNorm(8, width), nn.ReLU()]


class CourseUNet(nn.Module):
    """The course's network as its table describes it, written without a look at ours.

    Its head computes all 17 channels and shows the first.
    """

    def __init__(
        self,
        base_dim: int = 32,
        n_classes: int = 10,
        n_updown_blocks: int = 2,
        n_middle_blocks: int = 8,
    ) -> None:
        super().__init__()
        self.n_channels_img = 1
        self.n_classes = n_classes
        self.class_embedding = nn.Embedding(n_classes, 16)
        self.conv_in = nn.Sequential(*_block(nn.Conv2d(18, base_dim, 3, 1, 1), base_dim))
        down, up, width = [], [], base_dim
        for _ in range(n_updown_blocks):
            grown = 2 * width
            down.append(nn.Sequential(*_block(nn.Conv2d(width, grown, 3, 2, 1), grown)))
            double = nn.ConvTranspose2d(2 * grown, width, 3, 2, 1, 1)
            mix = nn.Conv2d(width, width, 1)
            up.append(nn.Sequential(*_block(double, width), *_block(mix, width)))
            width = grown
        self.down_blocks = nn.ModuleList(down)
        self.middle = nn.ModuleList(
            nn.Sequential(*_block(nn.Conv2d(width, width, 3, 1, 1), width))
            for _ in range(n_middle_blocks)
        )
        self.up_blocks = nn.ModuleList(up)
        self.conv_out = nn.Conv2d(2 * base_dim, 17, 3, 1, 1)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        label = self.class_embedding(c).unsqueeze(-1).unsqueeze(-1).repeat(1, 1, 28, 28)
        x = first = self.conv_in(torch.cat((x, label, t.repeat(1, 1, 28, 28)), dim=1))
        kept = []
        for block in self.down_blocks:
            x = block(x)
            kept.append(x)
        for block in self.middle:
            x = x + block(x)
        for i in range(len(self.up_blocks) - 1, -1, -1):
            x = self.up_blocks[i](torch.cat((x, kept[i]), dim=1))
        out: Tensor = self.conv_out(torch.cat((x, first), dim=1))[:, : self.n_channels_img]
        return out


class TenTimesSlower(CourseUNet):
    """As on a machine that takes ten times as long for each evaluation."""

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        start = time.perf_counter()
        out = super().forward(x, t, c)
        time.sleep(9 * (time.perf_counter() - start))
        return out


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bit for bit holds there; one thread is quickest for networks this small."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with torch_threads(1):
        yield


def load(text: str, directory: Path) -> ModuleType:
    name = f"exported_{next(_NUMBERS)}"
    path = directory / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    before = set(sys.modules)
    yield load(one_file(RECIPE, "About."), tmp_path_factory.mktemp("exported"))
    for name in set(sys.modules) - before:
        if name.startswith("exported_"):
            del sys.modules[name]


def tiny(kind: type[nn.Module] = ConditionalDiffusionUNet) -> Any:
    torch.manual_seed(0)
    return kind(base_dim=8, n_middle_blocks=1)  # type: ignore[call-arg]


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# What the file is


@pytest.mark.parametrize("recipe", VARIETY.values(), ids=VARIETY)
def test_it_gives_what_the_modules_give_bit_for_bit(recipe: Recipe, tmp_path: Path) -> None:
    module = load(one_file(recipe, "About."), tmp_path)
    # Neither the clock nor a measurement of speed shall have a say.
    short = {"steps": 3, "batch_size": 3, "precision": "fp32", "deadline_s": 1e6}
    theirs = finetune_model(tiny(), DrawingDataset(DRAWINGS), Recipe(**{**vars(recipe), **short}))
    values = {k: v for k, v in module._Recipe()._asdict().items() if k not in short}
    ours = module.finetune_model(
        tiny(), DrawingDataset(DRAWINGS), module._Recipe(**{**values, **short})
    )
    assert same(ours, theirs)


@pytest.mark.parametrize("recipe", VARIETY.values(), ids=VARIETY)
def test_every_value_that_it_shows_is_the_recipes_and_is_read(recipe: Recipe) -> None:
    text = one_file(recipe, "About.")
    tree = ast.parse(text)
    (shown,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "_Recipe")
    values = {
        n.target.id: ast.literal_eval(n.value)
        for n in shown.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and n.value
    }
    assert values.items() <= vars(recipe).items()
    assert {"steps", "lr", "batch_size", "seed", "deadline_s"} <= values.keys()
    read = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert values.keys() <= read
    decided = {f.name for f in dataclasses.fields(Recipe)} & {
        line.split()[1] for line in text.splitlines() if re.match(r"    # \w+ = .+: ", line)
    }
    assert decided
    assert not decided & read


@pytest.mark.parametrize("recipe", VARIETY.values(), ids=VARIETY)
def test_it_is_formatted_linted_and_has_nothing_that_is_not_used(recipe: Recipe) -> None:
    text = one_file(recipe, "About.")
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff is None:
        pytest.skip("needs ruff")
    lint = ["check", "--isolated", "--line-length=100", "--select=E,F,I,UP,B,SIM,RUF100"]
    for arguments in (["format", "--check", "--isolated", "--line-length=100"], lint):
        done = subprocess.run(
            [ruff, *arguments, "--target-version=py310", "--stdin-filename=x.py", "-"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    tree = ast.parse(text)
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    used |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    defined = {
        n.name
        for top in tree.body
        for n in (top, *(top.body if isinstance(top, ast.ClassDef) else ()))
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("__")
    }
    assert defined - used - {"forward", "backward"} == {"finetune_model"}


def test_it_is_read_from_top_to_bottom() -> None:
    text = one_file(VARIETY["default"], "About.")
    assert text.startswith('# SPDX-License-Identifier: MIT\n"""')
    assert "\n\nAbout.\n" in text
    titles = [f"= {section.title} =" for section in SECTIONS]
    words = ["\nimport ", titles[0], "class _Recipe", titles[1], "def finetune_model", *titles[2:]]
    places = [text.index(word) for word in words]
    assert places == sorted(places)
    assert all(text.count(title) == 1 for title in titles)


def test_what_the_recipe_rules_out_is_not_there() -> None:
    text = one_file(RECIPE, "About.")
    assert "def _add_lora" not in text and "def _rebuild(" not in text
    assert "# lora_rank = 0: rank of the low-rank updates; 0 is full training" in text
    assert "steps: int = 6  # optimizer steps when time allows" in text
    assert "def _add_lora" in one_file(VARIETY["lora"], "About.")
    for part in (
        "def _find_resizing(",
        "def _trace(",
        "def _stamp(",
        "draw_points",
    ):
        assert part not in text
        assert part in one_file(VARIETY["default"], "About.")
    for part in ("_LearnsVelocity", "_velocity_model", "_image_losses"):
        assert part not in text
    for name in ("_checked", "to_json", "RecipeError", "difflib"):
        assert name not in text


@pytest.mark.parametrize("recipe", VARIETY.values(), ids=VARIETY)
def test_it_clashes_with_nothing_and_refers_to_nothing_else(recipe: Recipe) -> None:
    text = one_file(recipe, "About.")
    assert "__future__" not in text
    assert re.findall(r"finetune\.\w+|from \.", text) == []
    bound = set()
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {alias.asname or alias.name for alias in node.names}
        else:
            bound |= {
                n.id
                for n in ast.walk(node)
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            }
    assert {name for name in bound if not name.startswith("_")} == {"torch", "finetune_model"}


def test_it_imports_torch_and_the_standard_library_alone() -> None:
    for recipe in VARIETY.values():
        assert set(imported_packages(one_file(recipe, "About."))) == {"torch"}


def test_a_foreign_import_is_seen_wherever_it_is() -> None:
    text = "import os\nfrom . import x\ndef f():\n    import finetune.adapt as a\n"
    assert list(imported_packages(text)) == [".", "finetune"]


# What it is given


@pytest.mark.parametrize(
    "dataset",
    [
        [(image, 10) for image in DRAWINGS],
        [(image, torch.tensor(10)) for image in DRAWINGS],
        list(DRAWINGS),
        DrawingDataset(DRAWINGS),
    ],
    ids=["int", "tensor", "bare", "dataset"],
)
def test_datasets_of_each_form(exported: ModuleType, dataset: Any) -> None:
    ours = exported.finetune_model(tiny(), dataset)
    assert same(ours, finetune_model(tiny(), DrawingDataset(DRAWINGS), RECIPE))


def test_the_courses_own_class(exported: ModuleType) -> None:
    course, ours = tiny(CourseUNet), tiny()
    course.load_state_dict(ours.state_dict(), strict=True)
    before = {k: v.clone() for k, v in course.state_dict().items()}
    adapted = exported.finetune_model(course, DrawingDataset(DRAWINGS))
    reference = exported.finetune_model(ours, DrawingDataset(DRAWINGS))
    assert type(adapted.network) is CourseUNet
    assert adapted.n_classes == 11 and adapted.n_channels_img == 1
    assert all(torch.equal(v, before[k]) for k, v in course.state_dict().items())
    states = adapted.state_dict(), reference.state_dict()
    # By the median: Adam's first steps are signs, which rounding can turn where gradients vanish.
    differences = torch.cat([(v - states[1][k]).abs().flatten() for k, v in states[0].items()])
    assert differences.median() < 1e-5
    x, t, c = torch.randn(3, 1, 28, 28), torch.rand(3, 1, 1, 1), torch.full((3,), 10)
    assert adapted.to("cpu").eval()(x, t, c).shape == x.shape


def test_the_courses_class_has_as_many_parameters_as_the_courses() -> None:
    assert sum(p.numel() for p in CourseUNet().parameters()) == 1_480_721


# Where it runs


def test_a_machine_ten_times_slower_returns_in_time_with_a_sensible_network(
    exported: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported.finetune_model(tiny(), DRAWINGS, exported._Recipe(steps=1))  # torch's first optimizer
    table = NoiseTable(len(DRAWINGS), n_strata=5, n_replicates=2)
    # A single step leaves the levels' posterior as the pixels alone tell it.
    untrained = exported.finetune_model(tiny(), DRAWINGS, exported._Recipe(steps=1))
    before = estimate(untrained, DRAWINGS, 10, table).mean
    for deadline_s in (4.0, 12.0, 36.0):  # beside other programs a few seconds teach nothing
        recipe = exported._Recipe(steps=100_000, batch_size=8, lr=1e-2, deadline_s=deadline_s)
        start = time.perf_counter()
        model = exported.finetune_model(tiny(TenTimesSlower), DrawingDataset(DRAWINGS), recipe)
        assert time.perf_counter() - start < 1.25 * deadline_s
        quick = tiny(CourseUNet)
        quick.class_embedding = nn.Embedding(11, 16)
        quick.load_state_dict(model.network.state_dict())
        model.network = quick
        after = estimate(model, DRAWINGS, 10, table).mean
        if after < 0.9 * before:
            break
    assert after < 0.9 * before, (after, before)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic(warn_only: bool) -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def settings() -> dict[str, Any]:
    """Of the process, as far as torch tells them."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warns only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast to": torch.get_autocast_dtype("cpu"),
        "benchmark": torch.backends.cudnn.benchmark,
        "precision": torch.get_float32_matmul_precision(),
        "random state": torch.get_rng_state().tolist(),
    }


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "none": contextlib.nullcontext,
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "meta device": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic": lambda: deterministic(warn_only=False),
    "deterministic, warning": lambda: deterministic(warn_only=True),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("render", ["direct", "pen"])
def test_the_process_is_left_as_it_was_and_has_no_say(
    setting: Callable[[], AbstractContextManager[Any]],
    render: str,
    exported: ModuleType,
    of_strokes: Callable[[str], ModuleType],
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    module = exported if render == "direct" else of_strokes(render)
    leaves_as_it_was(render, module.finetune_model, setting)
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn] == []


_WITHOUT: dict[str, Any] = {}  # by call: what it returns in no setting


def leaves_as_it_was(
    name: str, call: Callable[[Any, Any], Any], setting: Callable[[], AbstractContextManager[Any]]
) -> Any:
    """What ``call`` returns within ``setting``, which is what it returns without."""
    if name not in _WITHOUT:
        _WITHOUT[name] = call(tiny(), DrawingDataset(DRAWINGS))
    network = tiny()
    with setting():
        torch.manual_seed(5)
        before = settings()
        adapted = call(network, DrawingDataset(DRAWINGS))
        assert settings() == before
    assert same(adapted, _WITHOUT[name])
    assert not any(p.is_inference() for p in adapted.parameters())
    return adapted


@pytest.fixture(scope="module")
def of_strokes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModuleType]:
    """The file of a render other than the direct one."""

    @functools.cache
    def file(render: str) -> ModuleType:
        recipe = Recipe(**{**vars(RECIPE), "render": render, "steps": 2})
        return load(one_file(recipe, "About."), tmp_path_factory.mktemp(render))

    return file


def test_a_network_and_drawings_made_in_inference_mode(exported: ModuleType) -> None:
    with torch.inference_mode():
        network, drawings = tiny(), DRAWINGS.clone()
    adapted = exported.finetune_model(network, DrawingDataset(drawings))
    assert same(adapted, exported.finetune_model(tiny(), DrawingDataset(DRAWINGS)))


def test_a_float64_network_comes_back_in_float64(exported: ModuleType) -> None:
    adapted = exported.finetune_model(tiny().double(), DrawingDataset(DRAWINGS))
    assert {p.dtype for p in adapted.parameters()} == {torch.float64}
    x, t = torch.randn(2, 1, 28, 28).double(), torch.rand(2, 1, 1, 1).double()
    assert adapted(x, t, torch.full((2,), 10)).isfinite().all()


def gpu_at_hand(module: ModuleType, monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[str]:
    """A GPU that is always chosen and always fails; returns the devices that were tried."""
    tried: list[str] = []
    run = module._Run

    def fail(device: torch.device, *arguments: Any) -> Any:
        tried.append(device.type)
        if device.type == "cuda":
            raise error
        return run(device, *arguments)

    monkeypatch.setattr(module, "_training_device", lambda home: torch.device("cuda"))
    monkeypatch.setattr(module, "_Run", fail)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    ],
    ids=["memory", "cublas", "kernel"],
)
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_a_gpu_that_fails_leaves_the_run_to_the_cpu(
    exported: ModuleType, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    expected = exported.finetune_model(tiny(), DrawingDataset(DRAWINGS))
    tried = gpu_at_hand(exported, monkeypatch, error)
    adapted = exported.finetune_model(tiny(), DrawingDataset(DRAWINGS))
    assert tried == ["cuda", "cpu"]
    assert same(adapted, expected)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("out of memory")])
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_other_errors_are_told(
    exported: ModuleType, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tried = gpu_at_hand(exported, monkeypatch, error)
    with pytest.raises(type(error), match=str(error)):
        exported.finetune_model(tiny(), DrawingDataset(DRAWINGS))
    assert tried == ["cuda"]
