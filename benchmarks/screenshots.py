"""Take the README's screenshots: run the quick start, and look at it in a browser."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.errors import UserError, run_command

from .browser import chromium, dashboard

if TYPE_CHECKING:
    from playwright.sync_api import Page

_STUDY = "quickstart"
_SIZE_PX = (1360, 900)
_PATIENCE_MS = 120_000.0
_ABOVE_PX = 110  # the dashboard's bar, and the upper edge of a plot
_SETTLES_MS = 1500.0  # what moves after all is there
_LARGEST = 150_000  # bytes of a screenshot in the README
_COLOURS = 128


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screenshots", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="write PNGs there")
    parser.add_argument(
        "--seconds", type=float, default=400.0, help="of the quick start's search (default: 400)"
    )
    parser.add_argument(
        "--storage", help="database of a quick start that has run, instead of running one"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        storage = options.storage
        if storage is None:
            storage = f"sqlite:///{folder}/{_STUDY}.db"
            _search(storage, options.seconds)
        arguments = ["--study", _STUDY, "--storage", storage]
        with dashboard(arguments) as url, chromium() as browser:
            width, height = _SIZE_PX
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(_PATIENCE_MS)
            options.out.mkdir(parents=True, exist_ok=True)
            for name, data in _pictures(page, url).items():
                path = options.out / f"{name}.png"
                _write_small(path, data)
                print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    return 0


def _search(storage: str, seconds: float) -> None:
    command = [sys.executable, "-m", "hpo.worker", "--study", _STUDY]
    done = subprocess.run([*command, "--storage", storage, "--seconds", str(seconds)])
    if done.returncode:
        raise UserError(f"the quick start failed with exit code {done.returncode}; see above")


def _pictures(page: Page, url: str) -> dict[str, bytes]:
    """A screenshot of each page that the README shows."""
    api = page.request.get(f"{url}/api/studies").json()
    study = next(s["study_id"] for s in api["study_summaries"] if s["study_name"] == _STUDY)
    detail = page.request.get(f"{url}/api/studies/{study}").json()
    if not detail["best_trials"]:
        raise UserError("no trial was complete in that time; write more --seconds")
    best = detail["best_trials"][0]["number"]
    home = f"{url}/dashboard/studies/{study}"
    shots = {}

    page.goto(f"{home}/trials?numbers={best}")
    page.get_by_role("heading", name=f"Trial {best} (").wait_for()
    page.locator("img[src^='/artifacts/']").first.wait_for()
    shots["dashboard-trial"] = _shot(page)

    page.goto(f"{home}/note")
    page.get_by_role("heading", name="The best recipe").wait_for()
    shots["dashboard-story"] = _shot(page)

    page.goto(home)
    plot = page.get_by_text("Best loss so far against compute").first
    plot.wait_for()
    # The study's own plots are below those of the dashboard; its bar stays on top of them.
    plot.evaluate(f"e => {{ e.scrollIntoView(); window.scrollBy(0, -{_ABOVE_PX}) }}")
    shots["dashboard-plots"] = _shot(page)
    return shots


def _shot(page: Page) -> bytes:
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(_SETTLES_MS)
    picture: bytes = page.screenshot(animations="disabled")  # of no known type without Playwright
    return picture


def _write_small(path: Path, png: bytes) -> None:
    """The picture in a few colours, which pages like these have.

    Raises:
        UserError: it is too large for a README even so.
    """
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(_COLOURS)
    image.save(path, format="PNG", optimize=True)
    if path.stat().st_size > _LARGEST:
        raise UserError(f"{path} has {path.stat().st_size} bytes; {_LARGEST} are allowed")


if __name__ == "__main__":
    run_command(main)
