"""What each part of the page says, of studies in every state."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from finetune.recipe import Recipe
from hpo.analysis.groups import groups_of
from hpo.analysis.references import losses_of
from hpo.problem.recipe_method import RecipeMethod
from hpo.report.contents import report_of
from hpo.report.data import StudyData
from hpo.report.document import Code, Document, Pair, Section, Table, Text
from hpo.report.sections.history import loss_limit, pareto
from hpo.report.sections.recipe import to_toml
from hpo.study.config import StudyConfig
from hpo.study.confirmation import (
    CALLS_PREFIX,
    CONFIRMED_KEY,
    CandidateResult,
    Confirmation,
    read_confirmation,
)
from hpo.study.manifest import MANIFEST_KEY
from hpo.trial.run import Run, best_of, runs_of
from hpo.trial.stored import finite

Make = Callable[..., StudyData]
Attrs = dict[str, Any]


def section(document: Document, anchor: str) -> Section:
    return next(s for s in document.sections if s.anchor == anchor)


def tables(part: Section) -> list[Table]:
    found = [b for b in part.blocks if isinstance(b, Table)]
    return found + [b.table for b in part.blocks if isinstance(b, Pair)]


def texts(part: Section) -> str:
    return "\n".join(b.text for b in part.blocks if isinstance(b, Text))


def codes(part: Section) -> list[str]:
    return [b.text for b in part.blocks if isinstance(b, Code)]


def frozen(number: int, state: TrialState, value: float | None = None, **attrs: Any) -> FrozenTrial:
    trial = optuna.trial.create_trial(state=state, value=value, user_attrs=attrs)
    trial.number = number
    return trial


# The result


def test_an_empty_study_says_so_and_how_to_begin(make_data: Make) -> None:
    document = report_of(make_data([]))
    assert document.lead == [
        "No trial has finished yet, so there is nothing to compare.",
        "0 trials finished, 0 s of compute; none running when this was written.",
    ]
    assert codes(section(document, "next")) == ["python -m hpo.worker --study runes"]
    assert "There is no best recipe yet." in texts(section(document, "recipe"))


@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.FAIL])
def test_without_a_complete_trial_there_is_no_best(make_data: Make, state: TrialState) -> None:
    value = 0.1 if state == TrialState.PRUNED else None
    document = report_of(
        make_data([frozen(i, state, value, outcome="hopeless") for i in range(30)])
    )
    assert document.lead[0].startswith("No trial is complete with every call in time")
    assert "so there is no history to show" in texts(section(document, "history"))
    (table,) = tables(section(document, "outcomes"))
    assert table.rows[0][:3] == ("hopeless", "30", "100%")
    assert "importances are not known" in texts(section(document, "parameters")).lower()


def test_a_best_trial_is_not_called_confirmed(make_data: Make, trials: list[FrozenTrial]) -> None:
    document = report_of(make_data(trials))
    best = min((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: t.value or 0)
    assert document.lead[0].startswith(f"Trial {best.number} has the lowest loss so far: 0.0")
    assert "not confirmed" in document.lead[0]
    first = tables(section(document, "best"))[0]
    assert first.rows[0][0] == f"trial {best.number}"
    assert "python -m hpo.confirm --study runes" in codes(section(document, "next"))


def test_the_best_trials_are_shown_with_what_an_answer_costs(make_data: Make) -> None:
    attrs = {"outcome": "complete", "longest_call_s": 70.0}
    new = frozen(0, TrialState.COMPLETE, 0.08, **attrs, cost=1.625)
    old = frozen(1, TrialState.COMPLETE, 0.09, **attrs)  # stored before costs were measured
    part = section(report_of(make_data([new, old])), "best")
    table = tables(part)[0]
    column = table.columns.index("cost")
    assert [row[column] for row in table.rows] == ["1.62", ""]
    assert "CPU time of the returned network over the plain one's" in texts(part)


def test_an_infeasible_trial_is_never_best(make_data: Make) -> None:
    slow = frozen(0, TrialState.COMPLETE, 0.01, longest_call_s=140.0)
    slow.system_attrs["constraints:seconds over the limit"] = 20.0
    fast = frozen(1, TrialState.COMPLETE, 0.09, longest_call_s=100.0)
    document = report_of(make_data([slow, fast]))
    assert document.lead[0].startswith("Trial 1 has the lowest loss so far: 0.0900")
    (pair, *_) = [b for b in section(document, "history").blocks if isinstance(b, Pair)]
    assert "Grey: infeasible" in pair.figure.caption
    assert [row[0] for row in pair.table.rows] == ["trial 1"]


def test_what_was_confirmed_leads_with_its_intervals_and_points(
    make_data: Make, trials: list[FrozenTrial], confirmed: Attrs
) -> None:
    document = report_of(make_data(trials, confirmed))
    result = confirmed[CONFIRMED_KEY]
    assert document.lead[0].startswith(
        f"Trial {result['trial']} is the best one, measured again on 12 instances that no trial "
        f"saw: loss {result['loss']:.4f} ± "
    )
    assert document.lead[0].endswith(" points by the author's table.")
    against = result["against"]["default"]
    assert document.lead[1] == (
        f"Its loss minus the default recipe's: {against['difference']:+.4f} (95 % interval "
        f"{against['low']:+.4f} to {against['high']:+.4f})."
    )
    candidates = tables(section(document, "best"))[0]
    assert len(candidates.rows) == len(result["table"])
    assert "--confirmed --out submission/finetune.py" in codes(section(document, "next"))[-1]


def test_a_result_of_another_kind_is_told_and_the_best_trial_shown(
    make_data: Make, trials: list[FrozenTrial]
) -> None:
    for odd in ("x", {"loss": "low"}, [1], {"name": 1, "loss": 0.1}):
        document = report_of(make_data(trials, {CONFIRMED_KEY: odd}))
        assert "confirm again by python -m hpo.confirm" in texts(section(document, "best"))
        assert "not confirmed" in document.lead[0]


@pytest.mark.parametrize("other", [{"source": "drawn"}, {"alphabet": "Greek"}, {"train": 5}])
def test_other_drawings_earn_no_points(
    make_data: Make, config: StudyConfig, other: dict[str, Any]
) -> None:
    instances = config.instances.model_copy(update=other)
    config = config.model_copy(update={"instances": instances})
    document = report_of(make_data([frozen(0, TrialState.COMPLETE, 0.05)], config=config))
    assert "points" not in document.lead[0]
    assert "earn no points" in texts(section(document, "best"))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("omniglot 0123456789ab", True),
        ("omniglot 0123456789ab/5", False),
        ("omniglot Greek 0123456789ab", False),
        ("drawings 0123456789ab", False),
    ],
)
def test_drawings_of_a_command_line_are_told_by_the_manifest(
    make_data: Make, data: str, expected: bool
) -> None:
    """The file says Omniglot's Futhorc; the worker may have been told otherwise."""
    trials = [frozen(0, TrialState.COMPLETE, 0.05)]
    made = make_data(trials)
    made = replace(made, attrs={**made.attrs, MANIFEST_KEY: {"data": data}})
    assert made.has_points is expected


# References


def test_references_are_compared_on_the_same_instances(
    make_data: Make, trials: list[FrozenTrial], confirmed: Attrs, references: list[Any]
) -> None:
    document = report_of(make_data(trials, confirmed, references=references))
    against, points = tables(section(document, "best"))[1:]
    (row,) = against.rows
    assert row[:2] == ("reference A", "12")
    labels = {label.partition(" ")[0] for label in confirmed[CONFIRMED_KEY]["instances"]}
    losses = [r.loss for r in references if r.label in labels]
    assert float(row[2]) == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert float(row[4]) == pytest.approx(float(row[3]) - float(row[2]), abs=2e-4)
    earned = {r[0]: r[2] for r in points.rows}
    assert any("reference A" in who for who in earned.values())
    assert "the default recipe" in " ".join(earned.values())
    runes = section(document, "instances")
    assert [t.columns[-1] for t in tables(runes)] == ["reference A", "reference A"]


def test_references_of_other_drawings_or_networks_are_not(
    make_data: Make, trials: list[FrozenTrial], confirmed: Attrs, references: list[Any]
) -> None:
    for change in ({"data": "x"}, {"network": "x"}, {"resize": "nearest"}):
        others = [replace(r, **change) for r in references]
        document = report_of(make_data(trials, confirmed, references=others))
        assert "were not measured on these instances" in texts(section(document, "best"))
        assert tables(section(document, "instances"))[0].columns[-1] == "default"


# The recipe


def test_the_recipe_can_be_copied_as_json_and_toml(
    make_data: Make, trials: list[FrozenTrial], confirmed: Attrs, config: StudyConfig
) -> None:
    as_json, as_toml = codes(section(report_of(make_data(trials, confirmed)), "copy"))
    recipe = Recipe.from_json(as_json)
    assert recipe.to_dict() == confirmed[CONFIRMED_KEY]["recipe"]
    read = tomllib.loads(as_toml)
    assert Recipe.from_dict(read["fixed"]) == recipe
    StudyConfig.model_validate(
        {**config.model_dump(exclude={"start", "space"}), **read,
         "space": {"lora": {"type": "switch"}}}
    )  # fmt: skip


def test_toml_is_that_of_any_recipe() -> None:
    for recipe in (Recipe(), Recipe(lr=1e-7, lora_rank=4, lora_groups=("up",), train_groups=())):
        toml = to_toml(recipe.to_dict(), RecipeMethod())
        assert Recipe.from_dict(tomllib.loads(toml)["fixed"]) == recipe


def test_only_what_differs_from_the_default_is_listed(make_data: Make) -> None:
    recipe = Recipe(lr=2e-3, train_groups=("up", "output"))
    trial = frozen(0, TrialState.COMPLETE, 0.09, recipe=json.dumps(recipe.to_dict()))
    (table,) = tables(section(report_of(make_data([trial])), "recipe"))
    assert [row[:3] for row in table.rows] == [
        ("lr", "0.002", "0.004"),
        ("train_groups", "up+output", "input+down+middle+up+output+norm_bias+embedding"),
    ]


def test_a_recipe_of_another_release_is_told(make_data: Make) -> None:
    for stored in ("[]", "{", '{"colour": "red"}', 7, None):
        document = report_of(make_data([frozen(0, TrialState.COMPLETE, 0.09, recipe=stored)]))
        assert "is not of this release" in texts(section(document, "recipe"))


# By instance


def test_losses_by_instance_are_the_calls_own(
    make_data: Make, trials: list[FrozenTrial], confirmed: Attrs
) -> None:
    document = report_of(make_data(trials, confirmed))
    unseen, searched = tables(section(document, "instances"))
    result = confirmed[CONFIRMED_KEY]
    call = confirmed[f"{CALLS_PREFIX}{result['digest']}:{result['instances'][0]}"]
    assert unseen.rows[0][:2] == ("character03/0", f"{call['loss']:.4f} ± 0.0010")
    assert len(searched.rows) == 8
    assert searched.columns[2] == "default"


def test_calls_of_a_later_confirmation_are_not_mixed_in(
    make_data: Make, trials: list[FrozenTrial], confirmed: Attrs
) -> None:
    result = confirmed[CONFIRMED_KEY]
    changed = {k: {**v, "loss": v["loss"] + 0.01} if k.startswith(CALLS_PREFIX) else v
               for k, v in confirmed.items()}  # fmt: skip
    row = CandidateResult.model_validate(result["table"][0])
    assert row.digest == result["digest"]
    assert losses_of(confirmed, row, result["instances"])
    assert not losses_of(changed, row, result["instances"])
    document = report_of(make_data(trials, changed))
    assert "A later confirmation has begun" in texts(section(document, "instances"))


def test_a_result_has_its_own_calls(
    make_data: Make, trials: list[FrozenTrial], confirmed: Attrs
) -> None:
    result = confirmed[CONFIRMED_KEY]
    stored = {k.removeprefix(CALLS_PREFIX): v for k, v in confirmed.items() if CALLS_PREFIX in k}
    rows = []
    for row in result["table"]:
        calls = {label: stored.get(f"{row['digest']}:{label}") for label in result["instances"]}
        measured = [{**call, "instance": label} for label, call in calls.items() if call]
        rows.append({**row, "measured": measured})
    told = make_data(trials, {CONFIRMED_KEY: {**result, "table": rows}})
    before = make_data(trials, confirmed)
    assert section(report_of(told), "instances") == section(report_of(before), "instances")


# History


def test_compute_adds_up_and_improvements_only_fall(
    make_data: Make, trials: list[FrozenTrial]
) -> None:
    history, seconds = [
        b for b in section(report_of(make_data(trials)), "history").blocks if isinstance(b, Pair)
    ]
    losses = [float(row[2].split()[0]) for row in history.table.rows]
    assert losses == sorted(losses, reverse=True)
    front = [(float(r[1].split()[0]), float(r[2].split()[0])) for r in seconds.table.rows]
    assert [took for took, _ in front] == sorted(took for took, _ in front)
    assert [loss for _, loss in front] == sorted((loss for _, loss in front), reverse=True)


def make_runs(*values: tuple[float, float]) -> list[tuple[float, float, Run]]:
    runs = runs_of([frozen(i, TrialState.COMPLETE, loss) for i, (_, loss) in enumerate(values)])
    return [(s, loss, run) for (s, loss), run in zip(values, runs, strict=True)]


def test_the_front_is_of_those_that_none_beats() -> None:
    timed = make_runs((10, 0.3), (20, 0.2), (20, 0.25), (30, 0.2), (5, 0.4), (40, 0.1))
    assert [(s, loss) for s, loss, _ in pareto(timed)] == [
        (5, 0.4), (10, 0.3), (20, 0.2), (40, 0.1),
    ]  # fmt: skip


def test_what_diverged_does_not_set_a_figures_range() -> None:
    assert loss_limit([0.08, 0.09, 0.1, 5.0]) == 0.1
    assert loss_limit([0.08, 0.09, 0.1]) == 0.1
    assert loss_limit([0.1]) == 0.1
    story_of_one = [0.1, 0.1, 0.1, 9.0]
    assert loss_limit(story_of_one) == 0.1


# Parameters and augmentations


def test_importances_come_with_errors_and_slices_of_the_first(
    make_data: Make, trials: list[FrozenTrial]
) -> None:
    part = section(report_of(make_data(trials)), "parameters")
    (table,) = tables(part)
    shares = [float(row[1]) for row in table.rows]
    assert shares == sorted(shares, reverse=True)
    (figures,) = [b for b in part.blocks if b.kind == "figures"]
    assert [f.caption.partition(":")[0] for f in figures.figures] == [
        row[0] for row in table.rows[:6]
    ]


def test_augmentations_are_compared_by_thirds() -> None:
    numbers = [frozen(i, TrialState.COMPLETE, 0.1 + 0.01 * (i // 3)) for i in range(9)]
    for i, trial in enumerate(numbers):
        trial.params = {"scale": i / 10, "render": "ab"[i % 2], "shear": 0.1}
    runs = runs_of(numbers)
    low, middle, high = groups_of(runs, "scale")
    assert [g.label for g in (low, middle, high)] == ["0.00–0.20", "0.30–0.50", "0.60–0.80"]
    assert [g.trials for g in (low, middle, high)] == [3, 3, 3]
    assert [round(g.loss, 3) for g in (low, middle, high)] == [0.1, 0.11, 0.12]
    assert low.standard_error == pytest.approx(0)
    first, second = groups_of(runs, "render")
    assert (first.label, first.trials, second.label, second.trials) == ("a", 5, "b", 4)
    assert groups_of(runs, "shear") == []  # it does not vary
    assert groups_of(runs[:5], "scale") == []  # too few


def test_equal_values_are_of_one_group() -> None:
    made = [frozen(i, TrialState.COMPLETE, 0.1) for i in range(9)]
    for i, trial in enumerate(made):
        trial.params = {"batch_size": [3, 3, 3, 3, 3, 4, 5, 5, 8][i]}
    groups = groups_of(runs_of(made), "batch_size")
    assert [(g.label, g.trials) for g in groups] == [("3", 5), ("4", 1), ("5–8", 3)]
    assert groups[1].standard_error is None


# Outcomes, overview, next steps


def test_outcomes_are_counted_with_their_last_reason(
    make_data: Make, trials: list[FrozenTrial]
) -> None:
    part = section(report_of(make_data(trials)), "outcomes")
    (table,) = tables(part)
    counts = {row[0]: int(row[1]) for row in table.rows}
    assert sum(counts.values()) == 60
    assert counts["bug"] == 2
    (bug,) = [row for row in table.rows if row[0] == "bug"]
    assert bug[4] == "trial 57: ValueError: a mistake"
    (figure,) = [b for b in part.blocks if b.kind == "figure"]
    begun = [t for t in trials if t.state != TrialState.FAIL]
    made = sum(len(t.user_attrs.get("instances", ())) for t in begun)
    assert f"They took {made} calls, {1 - made / (8 * len(begun)):.0%} fewer" in figure.caption


def test_a_running_study_counts_who_runs(make_data: Make, trials: list[FrozenTrial]) -> None:
    running = optuna.trial.create_trial(state=TrialState.RUNNING)
    running.number = 60
    document = report_of(make_data([*trials, running]))
    assert document.lead[-1].endswith("1 running when this was written.")
    (facts,) = [b for b in section(document, "overview").blocks if b.kind == "facts"]
    assert ("trials running", "1") in facts.items


def test_parameters_at_the_end_of_their_range_are_named(make_data: Make) -> None:
    trial = optuna.trial.create_trial(
        value=0.09,
        params={"lr": 9.9e-3, "scale": 0.0, "steps": 500, "kind": "a"},
        distributions={
            "lr": optuna.distributions.FloatDistribution(5e-4, 1e-2, log=True),
            "scale": optuna.distributions.FloatDistribution(0.0, 0.4),
            "steps": optuna.distributions.IntDistribution(300, 8000, log=True),
            "kind": optuna.distributions.CategoricalDistribution(["a", "b"]),
        },
    )
    trial.number = 4
    said = texts(section(report_of(make_data([trial])), "next"))
    assert "The best trial, 4, is at the end of the range of lr (0.0099 of 0.0005 to 0.01)." in said
    assert "scale" not in said  # there is nothing below zero


def test_a_new_best_trial_asks_for_another_confirmation(
    make_data: Make, trials: list[FrozenTrial], confirmed: Attrs
) -> None:
    new = frozen(60, TrialState.COMPLETE, 0.01)

    def labels(made: list[FrozenTrial]) -> list[str]:
        blocks = section(report_of(make_data(made, confirmed)), "next").blocks
        return [b.label for b in blocks if isinstance(b, Code)]

    assert any("Confirm again: trial 60" in label for label in labels([*trials, new]))
    assert not any("Confirm again" in label for label in labels(trials))


# What others wrote


def test_numbers_are_finite_or_not_there() -> None:
    assert [finite(x) for x in (1, 2.5, True, "1", None, math.inf, math.nan, 10**400)] == [
        1.0, 2.5, None, None, None, None, None, None,
    ]  # fmt: skip


def test_calls_of_any_form_are_read_as_far_as_they_are_calls() -> None:
    stored = [{"instance": "a", "loss": 0.1}, {"instance": 3, "loss": 1}, "x", None,
              {"instance": "b", "loss": "low"}, {"loss": 1}]  # fmt: skip
    (run,) = runs_of([frozen(0, TrialState.COMPLETE, 0.1, instances=stored)])
    assert [(c.instance, c.loss, c.standard_error) for c in run.calls] == [("a", 0.1, None)]
    for odd in ("text", {"a": 1}, 3, None):
        (run,) = runs_of([frozen(0, TrialState.COMPLETE, 0.1, instances=odd)])
        assert run.calls == ()


def test_an_infinite_loss_is_none(make_data: Make) -> None:
    made = [frozen(0, TrialState.COMPLETE, math.inf), frozen(1, TrialState.COMPLETE, 0.1)]
    assert [r.number for r in best_of(runs_of(made))] == [1]
    assert report_of(make_data(made)).lead[0].startswith("Trial 1 ")


def test_a_confirmation_reads_back(confirmed: Attrs) -> None:
    found = read_confirmation(confirmed)
    assert isinstance(found, Confirmation)
    assert found.parsed_recipe(RecipeMethod()) is not None
    assert read_confirmation({}) is None


def test_a_file_that_crashes_is_to_be_mended_and_not_to_be_quicker(make_data: Make) -> None:
    reason = "thorn/0: mine.py line 21: IndexError: index out of range in self"
    crashed = [
        frozen(i, TrialState.PRUNED, outcome="crashed", reason=reason, instances=[])
        for i in range(4)
    ]
    said = texts(section(report_of(make_data(crashed)), "next"))
    assert f"4 of 4 trials crashed: mend the file. The last one: {reason}" in said
    assert "fewer steps" not in said
