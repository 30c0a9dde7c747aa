"""Runs a submission in an interpreter with nothing but torch: a script, never imported.

    python -I -B sandbox.py SUBMISSION CASE

CASE is a file of `torch.save`, written by `finetune.submission.proof`.  The submission may import
torch, numpy and the standard library.  It may not write files, start a process or open a
connection, and it sees only ten drawings and a network.  A report of the call goes to standard
output.  After the call a file of questions is written; the returned network's answers to them go to
standard output, too.  If SUBMISSION is empty, the project's own modules run instead, for
comparison.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import io
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import torch

_FORBIDDEN = (
    *("socket.", "subprocess.", "shutil.", "os.system", "os.exec", "os.fork", "os.posix_spawn"),
    *("os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.truncate"),
    *("urllib.", "ftplib.", "http.", "smtplib."),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_POLL_S = 0.02


class Guard(importlib.abc.MetaPathFinder):
    """Refuses imports and system calls, and records them, because a file may catch the errors."""

    def __init__(self) -> None:
        # Torch's own dependencies are already imported.
        loaded = {name.partition(".")[0] for name in sys.modules}
        self._allowed = loaded | set(sys.stdlib_module_names) | {"torch", "numpy"}
        self.refused: list[str] = []

    def watch(self) -> None:
        sys.meta_path.insert(0, self)
        sys.addaudithook(self._audit)

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> None:
        if fullname.partition(".")[0] not in self._allowed:
            self.refused.append(f"import {fullname}")
            raise ImportError(f"{fullname} is not torch and not of the standard library")

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[0] != os.devnull and arguments[2] & _WRITING
        if writes or event.startswith(_FORBIDDEN):
            what = f"{event} {arguments[0]}" if arguments else event
            self.refused.append(what)
            raise PermissionError(f"{what} is not allowed here")


class Drawings:
    """A dataset of pairs (image, label)."""

    def __init__(self, images: torch.Tensor) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._images[index], 10


def main(submission: str, case_path: str) -> None:
    case = torch.load(case_path, weights_only=True)
    torch.set_num_threads(case["threads"])
    model = _network(case)
    _warm_up()
    guard = Guard()
    warnings.simplefilter("ignore")  # torch may warn of the machine; that is not the file's doing
    said = io.StringIO()
    out, sys.stdout, sys.stderr = sys.stdout.buffer, said, said
    try:
        if submission:
            guard.watch()
            module = _load("submission", Path(submission))
            recipe = module._Recipe()
        else:
            sys.path.insert(0, case["project"])
            module = importlib.import_module("finetune.adapt")
            recipe = module.Recipe(**case["recipe"])
        values = recipe._asdict() if submission else dict(vars(recipe))
        # Of the fields that the file has; and the plain call of two arguments, where nothing has
        # to be otherwise.
        overrides = {k: v for k, v in case["overrides"].items() if k in values}
        again = type(recipe)(**{**values, **overrides})
        extra = [again] if overrides or not submission else []
        steps = _count_steps()
        torch.manual_seed(43)  # the author seeds every stream
        start = time.perf_counter()
        adapted = module.finetune_model(model, Drawings(case["train"]), *extra)
        seconds = time.perf_counter() - start
        state = {k: v.detach().cpu() for k, v in adapted.state_dict().items()}
        report = {"state": state, "seconds": seconds, "steps": steps(), "recipe": values}
        _send(out, report)
        answers = _answers(adapted, Path(case["questions"]))
    finally:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    _send(out, {"answers": answers, "refused": guard.refused, "said": said.getvalue()[:1000]})


def _send(out: BinaryIO, message: dict[str, Any]) -> None:
    """Send a message, preceded by its length in eight bytes."""
    packed = io.BytesIO()
    torch.save(message, packed)
    out.write(len(packed.getvalue()).to_bytes(8, "big") + packed.getvalue())
    out.flush()


def _answers(model: torch.nn.Module, questions: Path) -> list[torch.Tensor]:
    """Wait for the file of questions; returns the network's answer to each (x_t, t, c) in it."""
    while not questions.exists():  # the waiting process ends this one at a timeout
        time.sleep(_POLL_S)
    asked = torch.load(questions, weights_only=True)
    model.eval()
    with torch.inference_mode():
        return [model(*question).cpu().clone() for question in asked]


def _network(case: dict[str, Any]) -> torch.nn.Module:
    """The pretrained network, of the class whose source is in the case."""
    module = ModuleType("course")
    sys.modules["course"] = module
    exec(compile(case["network"], "course.py", "exec"), module.__dict__)
    model: torch.nn.Module = module.ConditionalDiffusionUNet()
    model.load_state_dict(case["state"])
    return model


def _warm_up() -> None:
    """Make torch do the imports of its first optimizer."""
    weight = torch.zeros(1, requires_grad=True)
    weight.sum().backward()
    torch.optim.AdamW([weight]).step()


def _count_steps() -> Callable[[], int]:
    """Count steps of AdamW from now on; returns a function that gives the busiest's count."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps: Counter[torch.optim.Optimizer] = Counter()

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if isinstance(optimizer, torch.optim.AdamW):
            steps[optimizer] += 1

    register_optimizer_step_post_hook(note)
    return lambda: max(steps.values(), default=0)


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(*sys.argv[1:])
