"""The method of this project: `finetune`'s recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from finetune.recipe import Recipe, RecipeError

from .base import (
    Called,
    Claim,
    ExportError,
    Field,
    Instance,
    InvalidValuesError,
    NotFiniteError,
    OnStep,
    Problem,
    Progress,
    ProofError,
    Values,
    Workload,
)
from .measure import HUNG
from .torch_method import TorchMethod

# Torch takes seconds to import, and who only reads a study file needs none of it.
if TYPE_CHECKING:
    from .instances import RuneInstance

_SEED = "seed"  # the recipe's field of a call's seed; a study sets it by its instances
_NO_DEADLINE_S = 1e6  # longest deadline of a recipe, so long that the schedule ends first


class RecipeMethod(TorchMethod):
    """`finetune.adapt` with the fields of `finetune.recipe.Recipe`; a `hpo.problem.base.Method`."""

    @cached_property
    def fields(self) -> Mapping[str, Field]:
        return {f.name: _field(f) for f in dataclasses.fields(Recipe)}

    def complete(self, values: Values) -> dict[str, Any]:
        return _recipe(values).to_dict()

    def units(self, instruction_set: str) -> str:
        import torch

        from finetune.machine.device import resolve_precision

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Rounding depends on the instruction set and the number format.
        return f"{instruction_set} {resolve_precision('auto', device)}"

    def workload(self, values: Values, instance: Instance) -> Workload | None:
        from .workload import workload_of

        rune = _rune_instance(instance)
        return workload_of(_recipe(values), len(rune.split.train), rune.group_sizes)

    def call(
        self,
        values: Values,
        instances: Sequence[Instance],
        on_step: OnStep,
        steps: Sequence[int] | None = None,
    ) -> list[Called]:
        from finetune.adapt import AdaptationError
        from finetune.side_by_side import Task, adapt_together

        if steps is not None and len(set(steps)) > 1:  # side by side all need the same number
            return [
                called
                for k, (instance, n) in enumerate(zip(instances, steps, strict=True))
                for called in self.call(values, [instance], partial(_renumbered, on_step, k), [n])
            ]
        recipe = _recipe(values)
        if steps:
            # With it the schedule never looks at the time.
            recipe = dataclasses.replace(recipe, steps=steps[0], deadline_s=_NO_DEADLINE_S)
        tasks = [
            Task(i.pretrained, i.split.train, dataclasses.replace(recipe, seed=i.seed))
            for i in map(_rune_instance, instances)
        ]
        try:
            adapted = adapt_together(tasks, on_step)
        except AdaptationError as error:
            raise NotFiniteError(str(error)) from error
        return [Called(a.model, a.steps, a.seconds, recipe.steps) for a in adapted]

    def fingerprint(self) -> dict[str, str]:
        from .fingerprint import code_digest

        return {"code": code_digest(), "torch": ".".join(version("torch").split(".")[:2])}

    def export(self, values: Values, about: str) -> str:
        from finetune.submission.bundle import bundle
        from finetune.submission.joining import JoinError

        try:
            return bundle(_recipe(values), about)
        except JoinError as error:
            raise ExportError(f"the modules can't be joined: {error}") from error

    def prove(
        self, file: Path, values: Values, problem: Problem, limit_s: float, claims: Sequence[Claim]
    ) -> Iterator[str]:
        from finetune.submission import proof

        from .runes import RuneProblem

        if not isinstance(problem, RuneProblem):
            raise ProofError("the recipe is proved on runes alone; write another problem's method")
        recipe = _recipe(values)
        instances = {i.label: i for i in problem.instances()}
        # Of those whose schedule no clock cut, where there is one: those can agree exactly.
        uncut = [c for c in claims if c.steps in (recipe.steps, c.steps_wanted)]
        claim = max(uncut, key=lambda c: c.steps) if uncut else claims[0] if claims else None
        instance = instances[claim.instance] if claim else next(iter(instances.values()))
        told = proof.Claim(claim.loss, claim.standard_error, claim.steps) if claim else None
        steps = None  # planned by a reference clock; the file makes as many
        if claim is not None and claim.steps == claim.steps_wanted != recipe.steps:
            steps, limit_s = claim.steps, HUNG * limit_s
        try:
            proof.check_imports(file)
            proof.check_same_source(file, recipe, instance)
            yield "same source: the file and its modules give the same weights, bit for bit"
            table = problem.noise_table(instance)
            proved = proof.check_call(file, recipe, instance, table, limit_s, told, steps)
        except proof.ProofError as error:
            raise ProofError(str(error)) from error
        yield from proof.describe(proved, told, recipe, instance.label, steps is not None)


def _recipe(values: Values) -> Recipe:
    try:
        return Recipe.from_dict(dict(values))
    except (RecipeError, TypeError) as error:  # TypeError: a stored value of a wrong type
        raise InvalidValuesError(str(error)) from error


def _renumbered(on_step: OnStep, index: int, _: int, progress: Progress) -> None:
    on_step(index, progress)


def _rune_instance(instance: Instance) -> RuneInstance:
    return cast("RuneInstance", instance)


def _field(field: dataclasses.Field[Any]) -> Field:
    meta = field.metadata
    unit = meta.get("unit", "")
    low, high = meta.get("range", (0.0, 0.0))
    if "range" in meta:
        return Field(
            field.default,
            "int" if isinstance(field.default, int) else "float",
            meta["meaning"],
            "" if unit == "1" else unit,
            low,
            high,
            set_by="instances.seeds" if field.name == _SEED else "",
        )
    if "subset" in meta:
        default = cast("tuple[str, ...]", field.default)
        return Field(list(default), "subset", meta["meaning"], choices=meta["subset"])
    return Field(field.default, "choice", meta["meaning"], choices=meta["choices"])
