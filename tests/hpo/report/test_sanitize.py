"""What others wrote, made fit to be shown."""

from __future__ import annotations

import html5lib
from hypothesis import given
from hypothesis import strategies as st

from hpo.report.sanitize import LONGEST, plain
from hpo.report.svg.drawing import Drawing

ANYTHING = st.text(st.characters(codec=None), max_size=60)  # lone surrogates, too


def test_ordinary_text_of_any_script_stays() -> None:
    for text in ("loss ± 0.01", "ᚠᚢᚦ", "日本\n\tx", "👩‍🚀", "שלום", "<b>&amp;"):
        assert plain(text) == text


def test_what_no_page_may_have_is_replaced() -> None:
    assert plain("a\x00b\x1bc\x7f\x9f") == "a\ufffdb\ufffdc\ufffd\ufffd"
    assert plain("\ud800x\udfff") == "\ufffdx\ufffd"
    assert plain("\ufffe\uffff\ufdd0\U0001fffe") == "\ufffd" * 4
    assert plain("moc.\u202eevil\u2066") == "moc.\ufffdevil\ufffd"


def test_long_text_is_cut_and_says_so() -> None:
    assert plain("x" * LONGEST) == "x" * LONGEST
    cut = plain("x" * 100_000)
    assert len(cut) == LONGEST
    assert cut.endswith("x…")
    assert plain("abcdef", 3) == "ab…"


def test_other_values_are_shown_as_text() -> None:
    assert plain(None) == "None"
    assert plain({"a": [1]}) == "{'a': [1]}"


@given(ANYTHING)
def test_any_text_comes_through_a_drawing_as_it_is_and_makes_no_element(text: str) -> None:
    drawing = Drawing("n", text, text, 10, 10)
    drawing.text((0, 0), text)
    page = f"<!DOCTYPE html><title>x</title>{drawing.markup()}"
    page.encode("utf-8")
    body = html5lib.HTMLParser(strict=True).parse(page)
    elements = [e for e in body.iter() if e.tag.startswith("{http://www.w3.org/2000/svg}")]
    assert [e.tag.rpartition("}")[2] for e in elements] == ["svg", "title", "desc", "text"]
    assert (elements[1].text or "") == plain(text, 2000)
    assert (elements[3].text or "") == plain(text, 200).replace("\n", " ")
