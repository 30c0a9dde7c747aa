"""Render a document as one self-contained HTML page without scripts."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

import jinja2
from markupsafe import Markup, escape

from .document import Document
from .sanitize import LONGEST, plain
from .svg import draw

_TEMPLATES = "templates"
_LONGEST_NAME = 60  # characters of a name, which has no line breaks
_LONGEST_CODE = 20_000  # characters of a text to copy


def to_html(document: Document) -> str:
    """The page, with everything in it escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hpo.report", _TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # All values are cleaned, unless they are markup that we made.
        finalize=lambda value: value if hasattr(value, "__html__") else plain(value, _LONGEST_CODE),
    )
    environment.filters["name"] = lambda value: plain(value, _LONGEST_NAME)
    environment.filters["short"] = lambda value: plain(value, LONGEST)
    environment.filters["whole"] = escape  # a picture must not be cut
    environment.filters["svg"] = draw
    style = read_style()
    return environment.get_template("report.html.j2").render(
        document=document, style=Markup(style), policy=policy(style)
    )


def read_style() -> str:
    """The text of the style sheet, without tags."""
    return (resources.files("hpo.report") / _TEMPLATES / "report.css").read_text("utf-8")


def policy(style: str) -> str:
    """The Content-Security-Policy: this style sheet and embedded pictures, nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
