"""Proof that an exported file differs only in its values, and reproduces a trial's loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...formatting import counted, with_error
from ..base import CallFailedError, Claim, NotFiniteError, OutOfTimeError, Problem, ProofError
from ..measure import measure
from .parameters import UserFile, parse_user_file

if TYPE_CHECKING:
    from ..file_method import FileMethod

_ERRORS = 3.0  # allowed difference of two losses, in standard errors


def prove_text(file: UserFile, text: str, values: Mapping[str, Any]) -> str:
    """Check that a text has these values in place of the file's defaults, and no other change.

    Returns:
        A line for people.

    Raises:
        ProofError: the text has other values, or differs elsewhere.
    """
    written = parse_user_file(file.path, text, file.style)
    found = {name: p.field.default for name, p in written.parameters.items()}
    for name, value in values.items():
        if found.get(name) != value:
            raise ProofError(f"the file's {name} is {found.get(name)!r}, and the trial's {value!r}")
    if _around_values(file) != _around_values(written):
        raise ProofError("the file differs from its author's by more than values")
    changed = [
        name for name, value in values.items() if value != file.parameters[name].field.default
    ]
    if not changed:
        return f"the same text as {file.path}: all values are its own"
    n = counted(len(changed), "value")
    return f"{n} of {file.path} changed, and nothing else: {', '.join(changed)}"


def _around_values(file: UserFile) -> list[str]:
    return file.source.around([p.place for p in file.parameters.values()])


def prove_call(
    method: FileMethod, text: str, problem: Problem, limit_s: float, claims: Sequence[Claim]
) -> Iterator[str]:
    """Check that a call of the text in a new process gives the trial's loss.

    Yields:
        A line for people.

    Raises:
        ProofError: the call fails, takes too long, or has another loss.
    """
    claim = claims[0] if claims else None
    instances = {i.label: i for i in problem.instances()}
    instance = instances[claim.instance] if claim else next(iter(instances.values()))
    try:
        (found,) = measure(
            method.as_written(text), problem, {}, [instance], limit_s, lambda *_: None
        )
    except (CallFailedError, NotFiniteError, OutOfTimeError) as failure:
        raise ProofError(str(failure)) from failure
    loss, error = found.evaluation.loss, found.evaluation.standard_error
    said = (
        f"{instance.label}: loss {with_error(loss, error)}, {found.seconds:.1f} s, "
        f"{counted(found.steps, 'step')}"
    )
    if claim is None:
        yield f"{said}; no trial to compare with"
    elif loss == claim.loss:
        yield f"{said}; the trial's, bit for bit"
    elif abs(loss - claim.loss) <= _ERRORS * math.hypot(error, claim.standard_error):
        theirs = with_error(claim.loss, claim.standard_error)
        yield f"{said}; the trial had {theirs}: the same within their errors"
    else:
        raise ProofError(
            f"the file's loss on {instance.label} is {loss:.6f}, and the trial's was "
            f"{claim.loss:.6f}: more than {_ERRORS:g} errors apart"
        )
