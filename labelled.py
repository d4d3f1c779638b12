"""Pictures with their classes: the folder that a picture lies in is its class.

    train/CLASS/1.jpg and test/CLASS/1.jpg    pictures to learn from and to test with
    CLASS/1.jpg                               the same, to be divided at random

Above these may be other folders. Named sets are read as though they lay in such folders.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cache import open_cached
from dataset import random_at, run_name
from sources import NAMED_SETS, DataError, Found, find
from utils import warn

EVERY, MOST_APART = 5, 10_000  # one picture in so many is set apart, up to the authors' number


class Labelled(NamedTuple):
    """Pictures, their classes, and for which purpose each is."""

    images: np.ndarray  # (N, H, W, C) uint8
    labels: np.ndarray  # (N,) int64, positions in `classes`
    classes: list[str]
    learning: np.ndarray  # rows of the pictures to learn from, in random order
    validation: np.ndarray  # of those to choose settings by
    test: np.ndarray


def open_labelled(
    data: str,
    image_size: tuple[int, int],
    channels: int,
    seed: int,
    download_dir: str = "data",
    cache_dir: str = "cache",
) -> Labelled:
    """Open the pictures of `data`, fitted to image_size (height, width) and `channels`.

    If there are folders train and test, a picture under neither is left out. Otherwise a fifth
    becomes the test. Then a fifth of what there is to learn from becomes the validation, at most
    `MOST_APART` pictures either time, and as large a share of every class.

    Raises:
        DataError: no such data, pictures that lie in no folder or can't be read, or a class with
            too few to learn from.
    """
    found = find_labelled(data, download_dir)
    cached = open_cached(found, image_size, channels, cache_dir, run_name(data))
    if cached.skipped:
        share = f"{len(cached.skipped):,} of {len(cached.skipped) + len(cached.images):,}"
        warn(f"{share} pictures can't be read; python dataset.py {data} lists them")
    undecoded = dict(cached.skipped[len(found.unreadable) :])
    names = [name for name in found.names if name not in undecoded]  # those of cached.images

    folders = [re.split(r"[/\\]", name)[:-1] for name in names]
    if [] in folders:
        name = names[folders.index([])]
        raise DataError(f"--data {data}: {name} lies in no folder that would be its class")
    parts = np.array([folder[-2] if len(folder) > 1 else "" for folder in folders])
    rows = np.arange(len(names))
    divided = {"train", "test"} <= set(parts)
    if divided:
        rows = np.flatnonzero((parts == "train") | (parts == "test"))
        if len(rows) < len(names):
            warn(f"{len(names) - len(rows):,} pictures in neither train nor test are left out")
    classes = sorted({folders[row][-1] for row in rows})
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number.get(folder[-1], -1) for folder in folders])

    if divided:
        learning, test = rows[parts[rows] == "train"], rows[parts[rows] == "test"]
    else:
        learning, test = set_apart(rows, labels, seed, "test")
    learning, validation = set_apart(learning, labels, seed, "validation")
    if len(classes) < 2:
        raise DataError(f"--data {data}: two classes or more, each in a folder, are needed")
    fewest = np.bincount(labels[learning], minlength=len(classes)).argmin()
    ...
