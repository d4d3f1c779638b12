"""Differentiable augmentation: the discriminator sees every image, real or drawn, changed.

So it can't learn a small set by heart (Zhao et al. 2020, arXiv 2006.10738). As gradients pass
through the changes, the generator learns to draw images without them.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHANCES = 7  # random numbers that an image takes
FARTHEST = 1 / 8  # of a side that an image is moved
HOLE = 1 / 2  # of a side that is cut out


def augment(x: Tensor, chances: Tensor) -> Tensor:
    """Change images x (N, C, H, W) in [-1, 1] in colour and place, and cut a hole into each.

    How follows from `chances` (N, 7), uniform in [0, 1). What moves in from outside and what is
    cut out is 0, the middle grey.
    """
    numbers = chances[:, :, None, None, None].unbind(1)  # each (N, 1, 1, 1)
    brightness, saturation, contrast, down, right, top, left = numbers
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * (contrast + 0.5)
    x = _move(_move(x, 2, down), 3, right)
    return x * ~(_hole(x, 2, top) & _hole(x, 3, left))


def _move(x: Tensor, dimension: int, chance: Tensor) -> Tensor:
    """Move each image along a dimension by up to `FARTHEST` of it, either way."""
    size = x.shape[dimension]
    most = int(size * FARTHEST + 0.5)
    places = _places(x, dimension) - (chance * (2 * most + 1)).floor().long() + most
    inside = (places >= 0) & (places < size)
    return x.gather(dimension, places.clamp(0, size - 1).expand_as(x)) * inside


def _hole(x: Tensor, dimension: int, chance: Tensor) -> Tensor:
    """Return which places along a dimension are in the hole, whose middle lies anywhere."""
    size = x.shape[dimension]
    first = (chance * (size + 1)).floor().long() - int(size * HOLE) // 2
    places = _places(x, dimension)
    return (places >= first) & (places < first + int(size * HOLE))


def _places(x: Tensor, dimension: int) -> Tensor:
    """Return 0, 1, ... along a dimension of images, in a shape that spreads over them."""
    shape = [1, 1, 1, 1]
    shape[dimension] = -1
    return torch.arange(x.shape[dimension], device=x.device).view(shape)
