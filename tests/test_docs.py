"""The documents: pages that are made from the code are up to date, and links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from hpo.study.config import StudyConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("examples/*.md")])
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_study_files_is_that_of_the_code(reference: ModuleType) -> None:
    written = (DOCS / "reference" / "studies.md").read_text("utf-8")
    assert written == reference.studies_page(), "run python docs/make_reference.py"
    assert "|  |" not in written, "a key has no docstring"


def test_the_page_of_commands_is_that_of_the_parsers(reference: ModuleType) -> None:
    written = (DOCS / "reference" / "commands.md").read_text("utf-8")
    assert written == reference.commands_page(), "run python docs/make_reference.py"


def test_the_page_for_python_is_that_of_the_docstrings(reference: ModuleType) -> None:
    written = (DOCS / "reference" / "python.md").read_text("utf-8")
    assert written == reference.python_page(), "run python docs/make_reference.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in _links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in _anchors(there), target


def _links(page: Path) -> Iterator[str]:
    for target in _LINK.findall(_CODE.sub("", page.read_text("utf-8"))):
        if not target.startswith(("http://", "https://", "mailto:")):
            yield target


def _anchors(page: Path) -> set[str]:
    """Of headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    texts = (text.strip().lower() for text in _HEADING.findall(prose))
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


_COMMAND = re.compile(r"(?:python -m (hpo|finetune|benchmarks)\.|(?<![\w/])runes )(\w+)([^`|\n]*)")
_OPTION = re.compile(r"(?<!\S)(--?[a-z][\w-]*)")
_STUDY = re.compile(r"--study ([a-z][\w-]*)(?![\w./-])")


def _commands(page: Path) -> Iterator[tuple[str, str, str]]:
    """Package, name and arguments of each command in code, lines that go on joined."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    for code in _CODE.findall(text):
        for package, name, arguments in _COMMAND.findall(code):
            yield package or "hpo", name, re.sub(r"\s#.*| &&.*| \|\|.*", "", arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_has_its_options_and_its_study(page: Path, reference: ModuleType) -> None:
    helps = dict(re.findall(r"^## `python -m (\S+)`\n(.*?)(?=^## |\Z)",
                            (DOCS / "reference" / "commands.md").read_text("utf-8"),
                            re.MULTILINE | re.DOTALL))  # fmt: skip
    modules = reference.modules()
    studies = {path.stem for path in (ROOT / "studies").glob("*.toml")} | {"mine", "wide"}
    for package, name, arguments in _commands(page):
        module = modules.get(name, f"{package}.{name}") if package == "hpo" else f"{package}.{name}"
        if package == "benchmarks":
            file = ROOT / "benchmarks" / f"{name}.py"
            if not file.exists():  # one of an older commit, which the page names
                assert re.search(rf"benchmarks\.{name}[^`]*` at\s+commit", page.read_text("utf-8"))
                continue
            known = file.read_text("utf-8")
            if "add_data_options" in known:
                known += (ROOT / "finetune" / "challenge.py").read_text("utf-8")
        elif module in helps:
            known = helps[module]
        else:
            assert not arguments.strip().startswith("-"), f"{module} is no command"
            continue
        for option in _OPTION.findall(arguments):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", known), f"{module} has no {option}"
        for study in _STUDY.findall(arguments):
            assert study in studies, f"{module}: there is no study {study}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_programs_in_it_can_be_read(page: Path) -> None:
    blocks = re.findall(r"^```(toml|python)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    for language, text in blocks:
        if language == "python":
            compile(text, str(page), "exec")
        elif "name" in (tables := tomllib.loads(text)):
            StudyConfig.model_validate(tables)
