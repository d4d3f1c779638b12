"""Latents by seed or from a file; paths, sums and directions between them: section 6 of the paper.

The directions are those of Shen and Zhou, "Closed-Form Factorization of Latent Semantics in GANs",
2021 (SeFa).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import generate, sample_latents
from serialization.construct import ACTIVATION_LAYERS
from utils import SettingsError, atomic_write

MAX_LATENTS = 10_000  # of one list
VARIANCE = {"normal": 1.0, "uniform": 1 / 3}  # of each dimension of a latent
NOISE = 0.25  # of neighbours, section 6.3.2

# Lists of seeds and files -------------------------------------------------------------------------


def parse_seeds(text: str, flag: str = "--seeds", example: str = "0-63,100") -> list[range]:
    """Parse a list of seeds such as "0-63,100" into ranges, in the order given.

    Raises:
        SettingsError: naming `flag`: it is not a list of numbers and ranges of them.
    """
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,99})(?:-(\d{1,99}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise SettingsError(f"{flag} {text}: write it like {example}")
        ranges.append(range(first, last + 1))
    return ranges


def read_latents(
    text: str, z_dim: int, z_dist: str = "normal", flag: str = "--seeds"
) -> tuple[list[str], Tensor]:
    """Load a list of seeds and files, such as "3,photo.npy,8-10", as names and latents (N, Z).

    A file holds latents (N, Z) of floats, as `numpy.save` writes them: "photo.npy" stands for all
    of its rows, and "photo.npy:0" for the first.

    Raises:
        SettingsError: naming `flag`: the list or a file can't be read, or they are too many.
    """
    names: list[str] = []
    latents: list[Tensor] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(.+\.npy)(?::(\d{1,99}))?\s*", part)
        if match:
            stored = _open_latents(match[1], z_dim, flag)
            rows = range(int(match[2]), int(match[2]) + 1) if match[2] else range(len(stored))
            if rows.stop > len(stored):
                raise SettingsError(f"{flag} {part}: the file has rows 0 to {len(stored) - 1}")
        else:
            (rows,) = parse_seeds(part, flag, "3,17,40-49 or 3,photo.npy")
        if len(names) + rows.stop - rows.start > MAX_LATENTS:
            raise SettingsError(f"{flag} {text}: {MAX_LATENTS:,} latents at most")
        if match:
            names += [f"{Path(match[1]).name}:{row}" for row in rows]
            with np.errstate(over="ignore"):
                z = torch.from_numpy(stored[rows.start : rows.stop].astype(np.float32))
            if not z.isfinite().all():
                raise SettingsError(f"{flag} {part}: holds numbers that are not finite")
            latents.append(z)
        else:
            names += map(str, rows)
            latents.append(sample_latents(rows, z_dim, z_dist))
    return names, torch.cat(latents)


def _open_latents(path: str, z_dim: int, flag: str) -> np.ndarray:
    """Map the latents (N, Z) of a .npy file, whose header may speak of more than it holds."""
    try:
        z = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise SettingsError(f"{flag} {path}: {error.strerror or error}") from None
    except (ValueError, OverflowError):
        raise SettingsError(f"{flag} {path}: not a .npy file of numbers") from None
    if z.dtype.kind != "f" or z.ndim != 2 or z.shape[1] != z_dim or len(z) == 0:
        shape = "x".join(map(str, z.shape))
        raise SettingsError(
            f"{flag} {path}: holds {shape} of {z.dtype}, not latents (N, {z_dim}) of floats"
        )
    return z


def save_latents(path: Path, z: Tensor) -> None:
    """Save latents z (N, Z) as float32 in a .npy file, for `read_latents`.

    Raises:
        OSError: naming `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.save(file, z.numpy().astype(np.float32))


def read_terms(text: str) -> list[tuple[int, str]]:
    """Parse "3,17 - 4,9 + 5,6" into signs and lists for `read_latents`; a space goes before a sign.

    Raises:
        SettingsError: a list is missing.
    """
    signed = text.strip()
    if not signed.startswith(("+", "-")):
        signed = f"+{signed}"
    _, *parts = re.split(r"(?:^|\s+)([+-])\s*", signed)
    terms = [(int(f"{sign}1"), part) for sign, part in zip(parts[::2], parts[1::2], strict=True)]
    if not all(part for _, part in terms):
        raise SettingsError(f'expression {text}: write it like "3,17,22 - 4,9,11 + 5,6,8"')
    return terms


# Paths and sums -----------------------------------------------------------------------------------


def walk(z: Tensor, frames: int, path: str = "spherical", loop: bool = False) -> Tensor:
    """Interpolate between latents z (N, Z) in order, in `frames` steps from each to the next.

    "spherical" turns from one to the next and keeps their norm. "straight" takes the chord, whose
    middle has about 0.7 of the norm: training hardly ever samples there, and images turn pale.

    Returns:
        ((N - 1) * frames + 1, Z) from the first to the last, or with `loop` (N * frames, Z), after
        which the first comes again.
    """
    starts, ends = (z, z.roll(-1, 0)) if loop else (z[:-1], z[1:])
    angle = torch.cosine_similarity(starts, ends).clamp(-1, 1).acos()[:, None, None]
    t = (torch.arange(frames) / frames)[:, None]
    # Latents in one line with the origin have no arc between them.
    if_arc = (path == "spherical") & (angle.sin() > 1e-3)
    from_start = torch.where(if_arc, ((1 - t) * angle).sin() / angle.sin(), 1 - t)
    from_end = torch.where(if_arc, (t * angle).sin() / angle.sin(), t)
    steps = (from_start * starts[:, None] + from_end * ends[:, None]).flatten(0, 1)
    return steps if loop else torch.cat([steps, z[-1:]])


def neighbours(z: Tensor, count: int = 8) -> Tensor:
    """Return z (Z,) with uniform noise from -0.25 to 0.25 (section 6.3.2): the same (count, Z)."""
    return z + NOISE * sample_latents(range(count), len(z), "uniform")


def turn(z: Tensor, direction: Tensor, steps: int) -> Tensor:
    """Move latents z (N, Z) along a direction (Z,), from -1 to 1 times it, and keep their norm.

    Without that the ends, which are longer than any latent of training, turn glaring.

    Returns:
        (N, steps, Z), of which the middle one, if `steps` is odd, is z.
    """
    t = torch.linspace(-1, 1, steps)[:, None]
    moved = z[:, None] + t * direction
    return moved * (z[:, None].norm(dim=2) / moved.norm(dim=2).clamp_min(1e-12))[..., None]


def rescale(z: Tensor, z_dist: str = "normal") -> Tensor:
    """Scale latents z (..., Z) to the mean norm of a generator's distribution.

    The mean of n latents has 1 / sqrt(n) of it, and its image is pale: training samples nothing
    near the origin. The paper's sum of three concepts of three exemplars has that norm anyway.
    """
    return F.normalize(z, dim=-1) * (VARIANCE[z_dist] * z.shape[-1]) ** 0.5


# Directions ---------------------------------------------------------------------------------------


def leading_directions(generator: nn.Module, count: int) -> Tensor:
    """Compute the unit directions (count, Z) that change the first map most, the most first.

    Up to its activation that map is A z + b, so they are the eigenvectors of A'A with the largest
    eigenvalues. A contains the layer's batch norm, unlike SeFa's, whose networks have none there.
    The largest part of each is positive.
    """
    latents = torch.cat([torch.zeros(1, generator.z_dim), torch.eye(generator.z_dim)])
    maps: list[Tensor] = []
    first = next(layer for layer in generator.modules() if isinstance(layer, ACTIVATION_LAYERS))
    with first.register_forward_pre_hook(
        lambda _, inputs: maps.append(inputs[0].flatten(1).to("cpu", torch.float64, copy=True))
    ):
        generate(generator, latents)
    origin, *changed = torch.cat(maps)[: len(latents)]
    a = torch.stack(changed) - origin  # (Z, D), the transpose of A
    directions = torch.linalg.eigh(a @ a.T).eigenvectors.T.flip(0)[:count]
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    return (signs * directions).float()


def read_displacement(generator: nn.Module, text: str, flag: str = "--move") -> Tensor:
    """Return the sum (Z,) of the leading directions in a text such as "1:2.5,3:-4".

    Directions count from 1; after the colon comes how far to move along it.

    Raises:
        SettingsError: naming `flag`: it can't be read, or z has fewer directions.
    """
    total = torch.zeros(generator.z_dim)
    directions = leading_directions(generator, generator.z_dim)
    for part in text.split(","):
        match = re.fullmatch(r"\s*([1-9]\d{0,8}):(-?\d{1,9}(?:\.\d{1,9})?)\s*", part)
        if not match:
            raise SettingsError(f"{flag} {text}: write it like 1:2.5,3:-4, direction:distance")
        if int(match[1]) > generator.z_dim:
            raise SettingsError(f"{flag} {text}: there are {generator.z_dim} directions")
        total += float(match[2]) * directions[int(match[1]) - 1]
    return total
