"""The page as HTML: valid, self-contained, accessible, and safe whatever is in the database."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from hpo.report.contents import report_of
from hpo.report.data import StudyData
from hpo.report.document import Picture
from hpo.report.html import to_html
from hpo.report.sanitize import plain
from hpo.study.confirmation import CALLS_PREFIX, CONFIRMED_KEY
from hpo.study.manifest import MADE_BY_KEY, MANIFEST_KEY

Make = Callable[..., StudyData]
Check = Callable[[str], Any]

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></svg><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "<!-- ]]> &lt;b&gt; javascript:alert(1)",
    "\x00\x1b[31m\ud800\u202egnp.exe",
    "x" * 100_000,
    "ᚠ 日本 👩‍🚀 שלום",
)


def test_a_whole_study_is_one_sound_page(
    make_data: Make, checked: Check, trials: list[FrozenTrial], confirmed: dict[str, Any],
    references: list[Any],
) -> None:  # fmt: skip
    page = checked(to_html(report_of(make_data(trials, confirmed, references=references))))
    assert len(page.all("svg")) > 15
    assert len(page.all("table")) > 9
    assert [h.text for h in page.all("h2")] == [
        "The best recipe", "The recipe", "The recipe to copy", "Loss by rune",
        "History of the search", "Parameters", "Augmentations",
        "Outcomes of trials", "Overview", "Events", "The study", "What to do next",
    ]  # fmt: skip
    assert len(page.text.encode()) < 150_000


def test_an_empty_study_is_one_too(make_data: Make, checked: Check) -> None:
    page = checked(to_html(report_of(make_data([]))))
    assert "No trial has finished yet" in page.words()


@pytest.mark.parametrize("evil", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_is_in_the_database_stays_text(
    make_data: Make, checked: Check, confirmed: dict[str, Any], evil: str
) -> None:
    made = []
    for i in range(30):
        distributions: dict[str, Any] = {
            evil[:300]: optuna.distributions.FloatDistribution(0.0, 1.0),
            "kind": optuna.distributions.CategoricalDistribution([evil, "b"]),
        }
        trial = optuna.trial.create_trial(
            state=TrialState.COMPLETE if i % 5 else TrialState.PRUNED,
            value=0.1 + i / 1000,
            params={evil[:300]: i / 30, "kind": (evil, "b")[i % 2]},
            distributions=distributions,
            user_attrs={
                "outcome": evil if i % 3 else "complete", "reason": evil, "recipe": evil,
                "machine": evil, "worker": evil, "note": evil, "longest_call_s": evil,
                "instances": [{"instance": evil + str(n), "loss": 0.1, "seconds": evil}
                              for n in range(3)],
            },
            system_attrs={"dashboard:note_str:0": evil},
        )  # fmt: skip
        trial.number = trial._trial_id = i
        made.append(trial)
    result = {**confirmed[CONFIRMED_KEY], "name": evil, "instances": [evil, evil + "/1 x"]}
    result["table"] = [{**row, "name": evil, "left": evil, "reason": evil} for row in
                       result["table"]]  # fmt: skip
    call = {"loss": result["loss"], "standard_error": 0.001}
    attrs: dict[str, Any] = {
        "about": evil,
        "dashboard:note_str:0": evil,
        MANIFEST_KEY: {evil: evil, "instances": f"{evil} a/0@{evil}", "networks": evil},
        MADE_BY_KEY: {evil: evil},
        f"worker:{evil}": {
            "joined": "2026-01-05T10:00:00Z",
            "ended": "2026-01-05T11:00:00Z",
            "why": evil,
            "reason": evil,
        },
        "control:000000": {"at": evil, "author": evil, "action": "drop", "trial": 1, "why": evil},
        CONFIRMED_KEY: result,
        **{f"{CALLS_PREFIX}{result['digest']}:{label}": call for label in result["instances"]},
    }
    picture = Picture("data:image/png;base64,AA==", evil, 1, 1)
    config = make_data([]).config.model_copy(update={"name": evil, "about": evil})
    seen = make_data(
        made, attrs, config=config, study_argument=evil, pictures=[picture], picture_remarks=[evil]
    )
    text = to_html(report_of(seen))
    text.encode("utf-8")
    page = checked(text)
    assert len(text) < 400_000
    if len(evil) < 300:
        assert page.words().count(" ".join(plain(evil).split())) > 10
    if "7 * 7" in evil:
        assert "49" not in page.words().split()


def test_pictures_are_within_the_page(make_data: Make, checked: Check) -> None:
    picture = Picture("data:image/png;base64,AA==", "trial 3: samples.png", 280, 84)
    page = checked(
        to_html(report_of(make_data([], pictures=[picture], picture_remarks=["One is out."])))
    )
    (img,) = page.all("img")
    assert dict(img.attrib) == {
        "src": picture.uri, "alt": "trial 3: samples.png", "width": "280", "height": "84",
    }  # fmt: skip
    assert "One is out." in page.words()


def test_a_large_picture_comes_out_whole(make_data: Make, checked: Check) -> None:
    uri = "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 700).decode()
    page = checked(to_html(report_of(make_data([], pictures=[Picture(uri, "noise", 28, 28)]))))
    assert [img.attrib["src"] for img in page.all("img")] == [uri]


def test_where_the_database_is_is_not_told(make_data: Make) -> None:
    url = "postgresql://me:secret@inner-host:5432/runes"
    text = to_html(report_of(make_data([], url=url)))
    assert "from PostgreSQL" in text
    for word in ("secret", "inner-host"):
        assert word not in text


def test_who_ran_workers_and_steered_them_is_not_told(make_data: Make) -> None:
    hours = [f"2026-01-05T{hour}:00:00.000+00:00" for hour in range(10, 16)]
    ended = {"stopped": "me@inner-host stopped the study", "error": "can't open /home/me/x.db"}
    attrs: dict[str, Any] = {
        f"worker:inner-host:77#{place}": {
            "joined": hours[0], "ended": hours[place], "why": why, "reason": reason
        }
        for place, (why, reason) in enumerate(ended.items(), start=1)
    }  # fmt: skip
    attrs["control:000000"] = {"at": hours[0], "author": "me@inner-host", "action": "pause"}
    text = to_html(report_of(make_data([], attrs)))
    for what in ("worker 2", "ended (stopped)", "ended (error)", "paused the study"):
        assert what in text
    for word in ("inner-host", "/home/me", "77"):
        assert word not in text
