"""Sample pictures: PNG artifacts of the study and of its best trials, as data URIs."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.artifacts import get_all_artifact_meta
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import FrozenTrial
from PIL import Image, UnidentifiedImageError

from ...artifacts.store import Store
from ...study.confirmation import Confirmation, read_confirmation
from ...trial.ranking import best_trials
from ..data import StudyData
from ..document import Block, Picture, Section, Text
from ..sanitize import plain

MOST_BYTES = 250_000  # of one picture
MOST_ALL_BYTES = 600_000  # of all pictures, before base64 adds a third
MOST_PICTURES = 24
_MOST_SIDE_PX = 4000
_BROKEN = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)
_BEST = 3  # best trials whose pictures are shown
_PNG = "image/png"


@dataclass(frozen=True)
class Found:
    """Pictures, and a remark for each artifact that can't be shown."""

    pictures: Sequence[Picture] = ()
    remarks: Sequence[str] = ()


class _UnfitError(Exception):
    """An artifact that can't be shown; the message says why."""


def pictures_section(data: StudyData) -> Section:
    """The pictures that were read, and what was left out."""
    blocks: list[Block] = []
    if data.pictures:
        blocks.append(
            Text(
                "Of a call, from top to bottom: real drawings that it did not see, samples of the "
                "pretrained network, samples of the adapted one from the same noise."
            )
        )
    blocks += data.pictures
    blocks += [Text(remark, aside=True) for remark in data.picture_remarks]
    return Section("pictures", "Pictures", blocks)


def read_pictures(study: optuna.Study, trials: Sequence[FrozenTrial], store: Store | None) -> Found:
    """Read PNG artifacts of the study, of the confirmed trial and of the best trials.

    Artifacts that are missing, broken, too large or of another type are left out with a remark.

    Args:
        store: store of the artifacts; None: files are not stored.
    """
    if store is None:
        return Found()
    pictures: list[Picture] = []
    remarks: list[str] = []
    total = missing = too_many = 0
    for whose, owner in _owners(study, trials):
        try:
            metas = get_all_artifact_meta(owner, storage=study._storage)
        except (KeyError, TypeError, json.JSONDecodeError):
            remarks.append(f"The list of artifacts of {whose} can't be read.")
            continue
        # Sorted by name, because their order in the database means nothing.
        for meta in sorted(metas, key=lambda m: (str(m.filename), str(m.artifact_id))):
            if meta.mimetype != _PNG:
                continue
            if too_many or len(pictures) >= MOST_PICTURES:
                too_many += 1
                continue
            name = f"{whose}: {plain(meta.filename, 80)}"
            try:
                content = _content(store, str(meta.artifact_id))
                if total + len(content) > MOST_ALL_BYTES:
                    too_many += 1
                    continue
                pictures.append(_picture(name, content))
                total += len(content)
            except ArtifactNotFound:
                missing += 1
            except _UnfitError as error:
                remarks.append(f"{name} was left out: {error}.")
            except OSError as error:
                # If the store is away, each of the others would wait as long.
                why = error.strerror or "the store does not answer"
                remarks.append(f"{name} was left out, and all after it: {why}.")
                return Found(pictures, remarks)
    if missing:
        remarks.append(f"{_left_out(missing)}: not where the study's artifacts are kept.")
    if too_many:
        remarks.append(f"{_left_out(too_many)}: the page has as many as it may.")
    return Found(pictures, remarks)


def _left_out(n: int) -> str:
    return f"{n} picture{' was' if n == 1 else 's were'} left out"


def _owners(
    study: optuna.Study, trials: Sequence[FrozenTrial]
) -> list[tuple[str, optuna.Study | FrozenTrial]]:
    """The study and trials whose artifacts are read, most important first."""
    owners: list[tuple[str, optuna.Study | FrozenTrial]] = [("study", study)]
    confirmed = read_confirmation(study.user_attrs)
    number = confirmed.trial if isinstance(confirmed, Confirmation) else None
    chosen = [t for t in trials if number is not None and t.number == number]
    chosen += [t for t in best_trials(trials, _BEST) if t not in chosen]
    return owners + [(f"trial {t.number}", t) for t in chosen]


def _content(store: Store, identifier: str) -> bytes:
    try:
        with store.open_reader(identifier) as file:
            content = file.read(MOST_BYTES + 1)
    except ValueError as error:  # an identifier that leads out of the directory
        raise _UnfitError("its identifier is none") from error
    if len(content) > MOST_BYTES:
        raise _UnfitError(f"it is larger than {MOST_BYTES // 1000} kB")
    return content


def _picture(name: str, content: bytes) -> Picture:
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            width, height = image.size
            image.verify()
    except _BROKEN as error:
        raise _UnfitError(f"it is no whole PNG ({type(error).__name__})") from error
    if max(width, height) > _MOST_SIDE_PX:
        raise _UnfitError(f"it is {width} by {height} pixels")
    uri = f"data:{_PNG};base64,{base64.b64encode(content).decode('ascii')}"
    return Picture(uri, name, width, height)
