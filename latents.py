"""Latents by their seeds or from a file, and what lies between them: means, paths and turns."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models import sample_latents
from utils import SettingsError

MOST = 10_000  # latents of one list that is to be looked at


def parse_seeds(text: str, flag: str = "--seeds") -> list[range]:
    """Read a list of seeds such as "0-63,100" into ranges, in the order given.

    Raises:
        SettingsError: naming `flag`: it is not a list of numbers and ranges of them.
    """
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise SettingsError(f"{flag} {text}: write it like 0-63,100")
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
        match = re.fullmatch(r"\s*(.+\.npy)(?::(\d+))?\s*", part)
        if match:
            z = _read_file(match[1], z_dim, flag)
            taken = range(len(z)) if match[2] is None else [int(match[2])]
            if taken and taken[-1] >= len(z):
                raise SettingsError(f"{flag} {part.strip()}: the file has rows 0 to {len(z) - 1}")
            names += [f"{Path(match[1]).name}:{i}" for i in taken]
            rows.append(z[list(taken)])
        else:
            (seeds,) = parse_seeds(part, flag)
            if len(names) + seeds.stop - seeds.start <= MOST:
                names += map(str, seeds)
                rows.append(sample_latents(seeds, z_dim, z_dist))
            else:
                raise SettingsError(f"{flag} {text}: {MOST:,} latents at most")
    return names, torch.cat(rows)


def _read_file(path: str, z_dim: int, flag: str) -> Tensor:
    """Read all latents (N, Z) of a .npy file, see `read_latents`."""
    try:
        # A map, so that a header which speaks of terabytes is measured against its file.
        z = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise SettingsError(f"{flag} {path}: {error.strerror or 'not a .npy file'}") from None
    except (ValueError, EOFError):
        raise SettingsError(f"{flag} {path}: not a .npy file of numbers") from None
    if z.dtype.kind != "f" or z.ndim != 2 or z.shape[1] != z_dim or not 0 < len(z) <= MOST:
        shape = "x".join(map(str, z.shape))
        raise SettingsError(
            f"{flag} {path}: holds {shape} of {z.dtype}, not latents (N, {z_dim}) of floats"
        )
    if not np.isfinite(z).all():
        raise SettingsError(f"{flag} {path}: holds numbers that are not finite")
    return torch.from_numpy(np.array(z, np.float32))
