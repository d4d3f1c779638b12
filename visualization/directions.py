"""Directions of z along which images change most, told by the generator's first layer alone.

Shen and Zhou, "Closed-Form Factorization of Latent Semantics in GANs", 2021 (SeFa).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from models import generate
from serialization.construct import ACTIVATION_LAYERS
from utils import SettingsError


def leading_directions(generator: nn.Module, count: int) -> Tensor:
    """Return the unit directions (count, Z) that change the first map most, the most first.

    Up to its activation that map is A z + b, so they are the eigenvectors of A'A with the largest
    eigenvalues. A contains the layer's batch norm, unlike SeFa's, whose networks have none there.
    The largest part of each is positive.
    """
    latents = torch.cat([torch.zeros(1, generator.z_dim), torch.eye(generator.z_dim)])
    maps: list[Tensor] = []
    first = next(layer for layer in generator.modules() if isinstance(layer, ACTIVATION_LAYERS))
    hook = first.register_forward_pre_hook(
        lambda _, inputs: maps.append(inputs[0].flatten(1).to("cpu", torch.float64, copy=True))
    )
    try:
        generate(generator, latents)
    finally:
        hook.remove()
    origin, *changed = torch.cat(maps)[: len(latents)]
    a = torch.stack(changed) - origin  # (Z, D), the transpose of A
    directions = torch.linalg.eigh(a @ a.T).eigenvectors.T.flip(0)[:count]
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    return (signs * directions).float()


def read_moves(text: str, flag: str = "--move") -> list[tuple[int, float]]:
    """Read "1:2.5,3:-4" into directions, counted from 1, and how far to move along each.

    Raises:
        SettingsError: naming `flag`: it is not a list of such pairs.
    """
    moves = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9}):(-?\d{1,9}(?:\.\d{1,9})?)\s*", part)
        if not match or int(match[1]) == 0:
            raise SettingsError(f"{flag} {text}: write it like 1:2.5,3:-4, direction:distance")
        moves.append((int(match[1]), float(match[2])))
    return moves


def read_displacement(generator: nn.Module, text: str, flag: str = "--move") -> Tensor:
    """Return the sum (Z,) of the leading directions that a text moves along, see `read_moves`.

    Raises:
        SettingsError: naming `flag`: it can't be read, or z has fewer directions.
    """
    moves = read_moves(text, flag)
    last = max(index for index, _ in moves)
    if last > generator.z_dim:
        raise SettingsError(f"{flag} {text}: there are {generator.z_dim} directions")
    directions = leading_directions(generator, last)
    return sum(distance * directions[index - 1] for index, distance in moves)
