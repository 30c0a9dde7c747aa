"""The command: databases of both kinds, published ones, mistakes, and a real browser."""

from __future__ import annotations

import copy
import gzip
import io
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial
from PIL import Image

from hpo.analysis import importance
from hpo.artifacts.uploads import Gallery
from hpo.errors import UserError
from hpo.report.__main__ import main
from hpo.storage.open import load_study, open_storage
from hpo.study.config import StudyConfig
from hpo.study.confirmation import CONFIRMED_KEY
from hpo.trial.ranking import best_trials

REPO = Path(__file__).parents[3]
PUBLISHED = REPO / "studies" / "results" / "runes-default.db.gz"
SHOTS = REPO / "build" / "screenshots"
RESAMPLES = importance._RESAMPLES

Store = Callable[..., None]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RUNES_STORAGE", "RUNES_ARTIFACTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)  # study files are found beside the package


def report(url: str, *more: str) -> str:
    assert main(["--study", "runes-default", "--storage", url, "--out", "r.html", *more]) == 0
    assert [p.name for p in Path().glob("*r.html*")] == ["r.html"]
    return Path("r.html").read_text("utf-8")


def test_the_page_of_a_stored_study(
    url: str, store: Store, config: StudyConfig, trials: list[FrozenTrial],
    confirmed: dict[str, Any], checked: Callable[[str], Any], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    store(url, config, trials, confirmed)
    page = checked(report(url))
    assert f"Trial {confirmed[CONFIRMED_KEY]['trial']} is the best one" in page.words()
    kind = "PostgreSQL" if url.startswith("postgresql") else "SQLite"
    assert f"from {kind}." in page.words()
    assert re.fullmatch(r"r\.html: \d+ kB\n", capsys.readouterr().out)


def test_an_empty_and_a_running_study(
    url: str, config: StudyConfig, checked: Callable[[str], Any]
) -> None:
    storage = open_storage(url, worker="me")
    storage.create_study(config.name, {}, [{"lr": 1e-3}])
    assert "No trial has finished yet" in checked(report(url)).words()
    study = load_study(storage, config.name)
    trial = optuna.Trial(study, storage.claim(study._study_id, None))  # type: ignore[arg-type]
    trial.set_user_attr("instances", [{"instance": "character02/0", "loss": 0.1}])
    page = checked(report(url))
    assert "1 running when this was written" in page.words()
    assert "workers alive 1" in page.words()
    storage.engine.dispose()


def test_the_published_study_is_opened_by_its_file(checked: Callable[[str], Any]) -> None:
    page = checked(report(str(PUBLISHED)))
    assert "Recipes for ten drawings of an Anglo-Saxon rune" in page.words()
    assert "reference A" in page.words()  # on the same drawings, whose rows come along
    copy = Path("copy.db")
    copy.write_bytes(gzip.decompress(PUBLISHED.read_bytes()))
    again = checked(report(f"sqlite:///{copy}"))
    since = r"Written [^,]*,|time left .*? trials"
    words = again.words().replace(" --storage sqlite:///copy.db", "")
    assert words != again.words(), "commands name the database that was looked at"
    assert re.sub(since, "", words) == re.sub(since, "", page.words())


def with_picture(trials: list[FrozenTrial], place: Path) -> list[FrozenTrial]:
    """The trials, the best of which has a picture that is kept at a place."""
    out = io.BytesIO()
    Image.new("L", (300, 90), 128).save(out, format="PNG")
    kept = Gallery(str(place)).keep("character02-0.png", out.getvalue)
    assert kept is not None
    best = best_trials(trials, 1)[0]
    shown = copy.copy(best)
    shown.system_attrs = {**best.system_attrs, **kept.link}
    return [shown if trial is best else trial for trial in trials]


def test_pictures_come_from_where_the_study_keeps_them(
    store: Store, config: StudyConfig, trials: list[FrozenTrial], tmp_path: Path,
    checked: Callable[[str], Any],
) -> None:  # fmt: skip
    url = f"sqlite:///{tmp_path}/s.db"
    store(url, config, with_picture(trials, tmp_path / "s-artifacts"), {})
    (picture,) = checked(report(url)).all("img")
    assert picture.get("alt").endswith(": character02-0.png")
    assert "<img" not in report(url, "--artifacts", "none")
    shutil.rmtree(tmp_path / "s-artifacts")
    page = report(url)
    assert "<img" not in page
    assert "1 picture was left out: not where the study&#39;s artifacts are kept." in page


def test_references_of_a_file(
    store: Store, config: StudyConfig, trials: list[FrozenTrial], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    store(url, config, trials, {})
    rows = [
        {"source": "omniglot", "data": "0123456789ab", "resize": "bilinear", "split": 0,
         "rune": rune, "network": "ba9876543210", "recipe": name, "loss": 0.2,
         "standard_error": 0.001}
        for rune in config.instances.runes for name in ("A", "default")
    ]  # fmt: skip
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = report(url, "--references", "rows.jsonl")
    assert "reference A" in page
    assert "0.2000 ± 0.0010" in page
    for odd in ('{"recipe": "A"}', "no JSON", "[1]", '{"recipe": "A", "loss": null}'):
        Path("odd.jsonl").write_text(odd)
        with pytest.raises(UserError, match=r"odd\.jsonl is not what benchmarks\.references"):
            report(url, "--references", "odd.jsonl")
    with pytest.raises(UserError, match=r"--references no\.jsonl: No such file"):
        report(url, "--references", "no.jsonl")


def test_mistakes_are_one_line_and_leave_no_file(tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        before = sorted(p.name for p in tmp_path.iterdir())
        with pytest.raises(UserError) as error:
            main(arguments)
        assert sorted(p.name for p in tmp_path.iterdir()) == before
        assert "\n" not in str(error.value)
        return str(error.value)

    study = ("--study", "runes-default", "--storage", str(PUBLISHED))
    assert told("--study", "none", "--out", "r.html").startswith("no study 'none'; write one of")
    assert "no such database" in told(*study[:3], "sqlite:///no.db", "--out", "r.html")
    assert "has no study 'quickstart'" in told(
        "--study", "quickstart", "--storage", str(PUBLISHED), "--out", "r.html"
    )
    assert told(*study, "--out", "no/r.html") == "--out: no is no directory; make it first"
    assert told(*study, "--out", ".") == "--out: . is a directory; write a file's name"
    said = "--out: /dev/null is no regular file; write another name"
    assert told(*study, "--out", "/dev/null") == said
    assert "is no directory; write one that exists" in told(
        *study, "--out", "r.html", "--artifacts", "no"
    )
    said = f"--out: {'x' * 200}... can't be written: File name too long"
    assert told(*study, "--out", "x" * 300) == said


def test_a_link_stays_a_link_to_the_page() -> None:
    Path("r.html").symlink_to("page.html")
    Path("page.html").touch()
    report(str(PUBLISHED))
    assert Path("r.html").is_symlink()
    assert Path("page.html").read_text("utf-8").startswith("<!DOCTYPE html>")


def test_a_mistake_is_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hpo.report", "--study", "none", "--out", "r.html"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no study 'none'")
    assert done.stderr.count("\n") == 1


def test_the_page_that_was_there_stays_when_the_new_one_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("r.html").write_text("old")

    def full(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"r\.html can't be written: No space left on device"):
        main(
            ["--study", "runes-default", "--storage", f"sqlite:///{_unpacked()}", "--out", "r.html"]
        )
    assert [p.name for p in Path().glob("*r.html*")] == ["r.html"]
    assert Path("r.html").read_text() == "old"


def _unpacked() -> Path:
    with gzip.open(PUBLISHED) as packed, Path("u.db").open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    return Path("u.db").resolve()


def test_the_command_needs_no_torch() -> None:
    code = (
        "import sys\nfrom hpo.report.__main__ import main\n"
        f"main(['--study', 'runes-default', '--storage', {str(PUBLISHED)!r},"
        " '--out', sys.argv[1]])\n"
        "sys.exit('torch' in sys.modules)"
    )
    out = str(Path("r.html").resolve())
    assert subprocess.run([sys.executable, "-c", code, out], cwd=REPO, check=False).returncode == 0


def test_two_thousand_trials_make_a_page_of_reasonable_size(
    store: Store, config: StudyConfig, many: list[FrozenTrial], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(importance, "_RESAMPLES", RESAMPLES)  # as many as in earnest
    url = f"sqlite:///{tmp_path}/many.db"
    store(url, config, many, {})
    began = time.process_time()
    page = report(url)
    assert time.process_time() - began < 20  # s; a few, but for a machine that is busy
    assert len(page.encode()) < 500_000
    assert "1950 trials finished" in page  # without those that failed, which have no value


@pytest.fixture(scope="module")
def written(
    store: Store, config: StudyConfig, trials: list[FrozenTrial], confirmed: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:  # fmt: skip
    """The address of a page with all that a page may have."""
    folder = tmp_path_factory.mktemp("written")
    url = f"sqlite:///{folder}/s.db"
    store(url, config, with_picture(trials, folder / "pictures"), confirmed)
    arguments = [
        "--study",
        "runes-default",
        "--storage",
        url,
        "--artifacts",
        str(folder / "pictures"),
    ]
    assert main([*arguments, "--out", str(folder / "r.html")]) == 0
    return (folder / "r.html").as_uri()


@pytest.mark.parametrize(("scheme", "paper"), [("light", (255, 255, 255)), ("dark", (21, 24, 27))])
def test_a_browser_shows_it_in_light_and_dark_and_refuses_nothing(
    browser: Any, written: str, scheme: str, paper: tuple[int, int, int]
) -> None:
    page = browser.new_page(viewport={"width": 1100, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(written)
    page.screenshot(path=SHOTS / f"report-{scheme}.png", full_page=True)
    assert page.evaluate("document.querySelector('img').naturalWidth") == 300
    page.close()
    assert said == []  # nothing was refused by the policy
    assert [url for url in asked if not url.startswith("data:")] == [written]
    with Image.open(SHOTS / f"report-{scheme}.png") as image:
        assert image.convert("RGB").getpixel((3, 3)) == paper
        colours = image.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    first = (11, 87, 164) if scheme == "light" else (116, 184, 255)
    assert first in {colour for _, colour in colours}  # the marks of the figures have theirs


def test_it_fits_a_phone(browser: Any, written: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, is_mobile=True)
    page.goto(written)
    page.screenshot(path=SHOTS / "report-phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    widths = page.evaluate("[...document.querySelectorAll('svg, img')].map(e => e.clientWidth)")
    assert min(widths) > 250
    page.close()


def test_it_prints_on_white_with_no_table_cut(browser: Any, written: str) -> None:
    a4_px = 718  # without the margins of a printer
    page = browser.new_page(viewport={"width": a4_px, "height": 1000}, color_scheme="dark")
    page.goto(written)
    page.emulate_media(media="print")
    page.screenshot(path=SHOTS / "report-print.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= a4_px
    ends = page.evaluate(
        "[...document.querySelectorAll('table, pre, svg, img')]"
        ".map(e => e.getBoundingClientRect().right)"
    )
    assert max(ends) <= a4_px
    assert not page.locator("nav").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()
