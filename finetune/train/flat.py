"""Parameters laid end to end, so that one operation moves them all.

A network has some sixty parameters, most of them small.  What an optimizer, a clipped gradient
and a running average do to each costs more in calls than in arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

# Of each parameter in turn; none where the loss does not depend on it.
Gradients = Sequence[Tensor | None]


class FlatParameters:
    """Float32 values of parameters in one tensor, and their gradients in another.

    While they train, parameters look into that tensor, or those of the first group into a copy
    in ``dtype``: what computes in bf16 then need not convert them one by one.  The order of a
    parameter's numbers in memory stays.

    Args:
        groups: of float32 parameters on one device, dense and without overlap; any may be empty.
        dtype: of the first group's parameters in training.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]], dtype: torch.dtype) -> None:
        self.parameters = [p for group in groups for p in group]
        sizes = [sum(p.numel() for p in group) for group in groups]
        device = self.parameters[0].device
        self.values = torch.empty(sum(sizes), device=device)
        self.gradients = torch.zeros(sum(sizes), device=device)
        self.masters = list(_views(self.values, self.parameters))  # of each parameter
        self._gradients = list(_views(self.gradients, self.parameters))
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            master.copy_(parameter.detach())
            parameter.data = master
        # Each group's, as an optimizer takes it.
        self.groups: list[nn.Parameter] = []
        parts = zip(self.values.split(sizes), self.gradients.split(sizes), strict=True)
        for values, gradients in parts:
            group = nn.Parameter(values)
            group.grad = gradients
            self.groups.append(group)
        self._first = self.groups[0].detach()
        self._seen = self._first.to(dtype)  # the same tensor in float32
        for parameter, seen in zip(groups[0], _views(self._seen, groups[0]), strict=True):
            parameter.data = seen

    def take_gradients(self, parts: Sequence[Gradients]) -> None:
        """Let ``gradients`` be the sum of ``parts``; one that is None counts as zero."""
        first, *others = parts
        places, values = [], []
        for place, value in zip(self._gradients, first, strict=True):
            if value is None:
                place.zero_()
            else:
                places.append(place)
                values.append(value)
        _copy(places, values)
        for part in others:
            for place, value in zip(self._gradients, part, strict=True):
                if value is not None:
                    place.add_(value)

    def show_values(self) -> None:
        """Let the parameters be what ``values`` has become."""
        if self._seen is not self._first:
            self._seen.copy_(self._first)

    def release(self) -> None:
        """Give each parameter float32 memory of its own again."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            parameter.data = master.clone()


def _copy(places: list[Tensor], values: list[Tensor]) -> None:
    """Copy each of ``values`` to its place: on a GPU in few operations, where torch can."""
    if hasattr(torch, "_foreach_copy_") and places and places[0].device.type == "cuda":
        torch._foreach_copy_(places, values)
    else:
        for place, value in zip(places, values, strict=True):
            place.copy_(value)


def _views(flat: Tensor, parameters: Iterable[nn.Parameter]) -> Iterator[Tensor]:
    """The places of ``parameters`` in a tensor as long as all of them."""
    start = 0
    for p in parameters:
        yield flat.as_strided(p.shape, p.stride(), start)
        start += p.numel()
