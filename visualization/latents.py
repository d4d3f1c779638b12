"""Latents by their seeds or from a file, and what lies between them: means, paths and turns."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models import sample_latents
from utils import SettingsError, atomic_write

MOST = 10_000  # latents of one list that is to be looked at
VARIANCE = {"normal": 1.0, "uniform": 1 / 3}  # of each dimension of a latent
NOISE = 0.25


def parse_seeds(text: str, flag: str = "--seeds", example: str = "0-63,100") -> list[range]:
    """Read a list of seeds such as "0-63,100" into ranges, in the order given.

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
    """Read a list of seeds and files, such as "3,photo.npy,8-10", into names and latents (N, Z).

    A file holds latents (N, Z) of floats, as `numpy.save` writes them: "photo.npy" stands for all
    of its rows, and "photo.npy:0" for the first.

    Raises:
        SettingsError: naming `flag`: the list can't be read, a file is not one of such latents,
            or they are more than anyone looks at.
    """
    names: list[str] = []
    rows: list[Tensor] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(.+\.npy)(?::(\d{1,99}))?\s*", part)
        if match:
            stored = _map_file(match[1], z_dim, flag)
            first = int(match[2] or 0)
            taken = range(first, first + 1 if match[2] else len(stored))
            if taken.stop > len(stored):
                raise SettingsError(f"{flag} {part}: the file has rows 0 to {len(stored) - 1}")
        else:
            (taken,) = parse_seeds(part, flag, "3,17,40-49 or 3,photo.npy")
        if len(names) + taken.stop - taken.start > MOST:
            raise SettingsError(f"{flag} {text}: {MOST:,} latents at most")
        if match:
            names += [f"{Path(match[1]).name}:{i}" for i in taken]
            with np.errstate(over="ignore"):
                z = stored[taken.start : taken.stop].astype(np.float32)
            if not np.isfinite(z).all():
                raise SettingsError(f"{flag} {part}: holds numbers that are not finite")
            rows.append(torch.from_numpy(z))
        else:
            names += map(str, taken)
            rows.append(sample_latents(taken, z_dim, z_dist))
    return names, torch.cat(rows)


def read_terms(text: str) -> list[tuple[int, str]]:
    """Read "3,17 - 4,9 + 5,6" into signs and lists for `read_latents`; a space goes before a sign.

    Raises:
        SettingsError: a list is missing.
    """
    first, *others = re.split(r"(?:^|\s+)([+-])\s*", text.strip())
    parts = others if first == "" else ["+", first, *others]
    terms = [
        (1 if sign == "+" else -1, part) for sign, part in zip(*[iter(parts)] * 2, strict=True)
    ]
    if not terms or not all(part for _, part in terms):
        raise SettingsError(f'expression {text}: write it like "3,17,22 - 4,9,11 + 5,6,8"')
    return terms


def walk(z: Tensor, frames: int, path: str = "spherical", loop: bool = False) -> Tensor:
    """Go through latents z (N, Z) in order, in `frames` steps from each to the next.

    "spherical" turns from one to the next and keeps their norm. "straight" takes the chord, whose
    middle has about 0.7 of the norm: training hardly ever draws there, and images turn pale.

    Returns:
        ((N - 1) * frames + 1, Z) from the first to the last, or with `loop` (N * frames, Z), after
        which the first comes again.
    """
    starts, ends = (z, z.roll(-1, 0)) if loop else (z[:-1], z[1:])
    cosine = torch.cosine_similarity(starts, ends).clamp(-1, 1)
    angle = cosine.acos()[:, None, None]  # (legs, 1, 1)
    t = (torch.arange(frames) / frames)[:, None]
    # Latents in one line with the origin have no arc between them.
    if_arc = (path == "spherical") & (angle.sin() > 1e-3)
    from_start = torch.where(if_arc, ((1 - t) * angle).sin() / angle.sin(), 1 - t)
    from_end = torch.where(if_arc, (t * angle).sin() / angle.sin(), t)
    steps = (from_start * starts[:, None] + from_end * ends[:, None]).flatten(0, 1)
    return steps if loop else torch.cat([steps, z[-1:]])


def combine(terms: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Add and subtract concepts, as in section 6.3.2: the sum (Z,) of sign x mean latent.

    Args:
        terms: signs, +1 or -1, and the latents (N, Z) of each concept's exemplars.
    """
    return torch.stack([sign * z.mean(0) for sign, z in terms]).sum(0)


def neighbours(z: Tensor, count: int = 8) -> Tensor:
    """Add uniform noise from -0.25 to 0.25 (section 6.3.2) to z (Z,): (count, Z), always the same.

    The paper's z is uniform from -1 to 1.
    """
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

    The mean of n latents has 1 / sqrt(n) of it, and its image is pale: near the origin lies
    nothing that training draws. The paper's sum of three concepts of three exemplars has it anyway.
    """
    return F.normalize(z, dim=-1) * (VARIANCE[z_dist] * z.shape[-1]) ** 0.5


def save_latents(path: Path, z: Tensor) -> None:
    """Write latents z (N, Z) as float32 to a .npy file, which `read_latents` reads.

    Raises:
        OSError: naming `path`.
    """
    serialized = io.BytesIO()  # as NumPy hides what the system says of a disk that is full
    np.save(serialized, z.numpy().astype(np.float32))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(serialized.getbuffer())


def _map_file(path: str, z_dim: int, flag: str) -> np.ndarray:
    """Return all latents (N, Z) of a .npy file, see `read_latents`, as they lie there.

    A map, so that a header which speaks of terabytes is measured against its file.
    """
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
