"""The document as Markdown and on a terminal: the same story, safe whatever is in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.problem.recipe_method import RecipeMethod
from hpo.report.contents import NOTE_SECTIONS, report_of, summary_of
from hpo.report.data import StudyData
from hpo.report.document import Code, Document, Section, Table, Text
from hpo.report.markdown import escape, section_markdown, to_markdown, to_terminal
from hpo.report.sections.trial import trial_section
from hpo.trial.run import run_of

Make = Callable[..., StudyData]


def one_section(*blocks: Any) -> Document:
    return Document("Study s", "about", ["The result."], "now", [Section("a", "A", blocks)])


def test_a_note_has_the_story_of_the_report_without_its_figures(
    make_data: Make, trials: list[FrozenTrial], confirmed: dict[str, Any], references: list[Any]
) -> None:
    document = report_of(make_data(trials, confirmed, references=references))
    note = to_markdown(document.only(NOTE_SECTIONS))
    headings = [line for line in note.splitlines() if line.startswith("#")]
    assert headings == [
        "# Study runes-default", "## The best recipe", "## The recipe", "## Parameters",
        "## Outcomes of trials", "## The study", "## What to do next",
    ]  # fmt: skip
    for text in document.lead:
        assert escape(text) in note
    assert "| reference A | 12 |" in note
    assert "python -m hpo.export --study runes --confirmed --out submission/finetune.py" in note
    assert "<svg" not in note
    assert len(note) < 15_000  # every poll of the dashboard's page loads it


def test_a_summary_on_a_terminal_is_short_and_aligned(
    make_data: Make, trials: list[FrozenTrial]
) -> None:
    data = make_data(trials)
    summary = to_terminal(summary_of(data))
    lines = summary.splitlines()
    assert lines[0] == "Study runes-default"
    assert " ".join(lines[1:4]).startswith(report_of(data).lead[0])
    assert max(map(len, lines)) <= 120
    assert "    python -m hpo.confirm --study runes" in lines
    assert "\\" not in summary and "|" not in summary
    assert len(lines) < 50
    (head,) = [line for line in lines if line.lstrip().startswith("field ")]
    (row,) = [line for line in lines if line.startswith("    lr ")]
    end = head.index("value") + len("value")
    assert row[end - 1] != " " and row[end] == " "  # numbers end where their head ends


def test_a_summary_computes_no_importances(
    make_data: Make, trials: list[FrozenTrial], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.analysis.status.importances", lambda *_: 1 / 0)
    assert "What to do next" in to_terminal(summary_of(make_data(trials)))


def test_text_of_unknown_origin_stays_text() -> None:
    assert escape("a|b\n# c") == "a\\|b \\# c"
    assert escape("![x](http://evil)") == "\\!\\[x\\](http://evil)"
    evil = "<script>|`x`\n# head \x1b[31m\u202e"
    note = to_markdown(
        one_section(Text(evil), Table(evil, (evil, evil), [(evil, evil)]), Code(evil, "```\nrm"))
    )
    assert "\n# head" not in note
    assert "\\<script\\>\\|\\`x\\` \\# head" in note
    assert "\x1b" not in note and "\u202e" not in note
    assert "````\n```\nrm\n````" in note  # the fence is longer than those within
    on_terminal = to_terminal(one_section(Text(evil), Code(evil, evil)))
    assert "\x1b" not in on_terminal and "\u202e" not in on_terminal


def test_a_trial_of_any_form_has_a_note() -> None:
    calls = [{"instance": "a|b", "loss": 0.1, "seconds": "long", "steps": None}, 7, {"loss": 1}]
    for attrs in ({}, {"instances": calls, "recipe": "{", "reason": "a_b"}, {"instances": 3}):
        trial = create_trial(
            state=TrialState.PRUNED,
            user_attrs={**attrs, "outcome": "pruned"},
            system_attrs={"artifacts:x": "no JSON", "artifacts:y": '{"mimetype": "image/png"}'},
        )
        note = section_markdown(trial_section(run_of(trial), RecipeMethod(), "/artifacts/1/1"))
        assert note.startswith("## Trial -1: pruned")
        assert ("| a\\|b | 0.1000 |  |  |" in note) == (attrs.get("instances") is calls)
        assert ("Why: a\\_b." in note) == ("reason" in attrs)
