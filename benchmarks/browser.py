"""The dashboard in a real browser: a Chromium that is installed, driven by Playwright."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from finetune.errors import UserError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_STOP_S = 20.0


def find_chromium() -> str:
    """The program of a Chromium, or a Chrome.

    Raises:
        UserError: there is none; says how to get one.
    """
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    raise UserError("no Chromium is installed; on Debian: apt-get install chromium")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser.

    Raises:
        UserError: it, or Playwright, is not installed.
    """
    path = find_chromium()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise UserError("Playwright is missing: pip install -e '.[browser]'") from error
    # Chromium's sandbox does not work for root, who is whom containers run as.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def dashboard(arguments: Sequence[str]) -> Iterator[str]:
    """``python -m hpo.dashboard`` with these arguments on a free port; its address.

    Raises:
        UserError: it does not start; says what it said.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "hpo.dashboard", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line.strip())
            if found := re.search(r"http://\S+:\d+", line):
                yield found[0]
                return
        raise UserError(f"the dashboard did not start: {' '.join(said)}")
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
