"""Read a dataset of `finetune_model` as one tensor of white strokes on black in [0, 1].

Another range or polarity is converted if it is beyond doubt, and rejected otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..canvas import IMAGE_SIZE

_OVERSHOOT = 0.3  # kernels with negative lobes overshoot [0, 1] by less
# Paper and ink in other ranges: bytes; mean and deviation of a half; centred; MNIST's own.
_RANGES = ((0.0, 255.0), (-1.0, 1.0), (-0.5, 0.5), (-0.1307 / 0.3081, (1 - 0.1307) / 0.3081))
_LIGHT = 0.6  # strokes cover a smaller share of the pixels
_SHAPES = ((IMAGE_SIZE, IMAGE_SIZE), (IMAGE_SIZE**2,))
_GIVE = "give images of 1x28x28 in [0, 1], white strokes on black"


def read_drawings(dataset: Any) -> Tensor:
    """The images of a dataset, (n, 1, 28, 28) float32 in [0, 1], white on black.

    Args:
        dataset: pairs (image, label) or bare images, by length and index or by iteration.

    Raises:
        ValueError: no image, one of another shape, NaN, or a range or polarity in doubt.  The
            message names the drawing and what to give.
    """
    # By length and index, because iteration over a dataset may not end properly.
    by_index = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, (dict, str)) or not (by_index or hasattr(dataset, "__iter__")):
        raise ValueError(f"the dataset is a {type(dataset).__name__}; {_GIVE}")
    items = (dataset[i] for i in range(len(dataset))) if by_index else dataset
    images: list[Tensor] = []
    for i, item in enumerate(items):
        image = item[0] if isinstance(item, (tuple, list)) else item
        try:
            image = torch.as_tensor(image, device="cpu").detach()  # whatever the default device
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"drawing {i} is a {type(image).__name__}; {_GIVE}") from None
        if image.squeeze().shape not in _SHAPES or image.is_complex():
            raise ValueError(f"drawing {i} is {tuple(image.shape)}; {_GIVE}")
        scale = 255.0 if image.dtype == torch.uint8 and image.max() > 1 else 1.0
        images.append(image.float().reshape(1, IMAGE_SIZE, IMAGE_SIZE) / scale)
    if not images:
        raise ValueError("the dataset is empty; at least one drawing is needed")
    return _white_on_black(_from_range(torch.stack(images)))


def _from_range(images: Tensor) -> Tensor:
    """Convert images from one of the known ranges to [0, 1]."""
    least, most = images.amin((1, 2, 3)), images.amax((1, 2, 3))
    is_unit = (least >= -_OVERSHOOT) & (most <= 1 + _OVERSHOOT)
    if is_unit.all():
        return images
    paper = images.flatten(1).mode(1).values  # the most common value of each drawing
    for low, high in _RANGES:
        near = 1e-3 * (high - low)
        of_paper = ((paper - low).abs() < near) | ((paper - high).abs() < near)
        within = (least > low - near).all() and (most < high + near).all()
        if of_paper.all() and within and most.max() - least.min() > (high - low) / 2:
            return (images - low) / (high - low)
    i = int((~is_unit).nonzero()[0])
    raise ValueError(f"drawing {i} lies in [{least[i]:.4g}, {most[i]:.4g}]; {_GIVE}")


def _white_on_black(images: Tensor) -> Tensor:
    """Invert the images if all are mostly light; leave them if all are mostly dark."""
    light = (images > 0.5).flatten(1).float().mean(1) > _LIGHT
    if light.any() and not light.all():
        i = int(light.nonzero()[0])
        raise ValueError(f"drawing {i} is black on white and others are not; {_GIVE}")
    return 1 - images if light.all() else images
