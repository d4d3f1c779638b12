"""Images with their classes: the folder that an image lies in is its class.

    train/CLASS/1.jpg and test/CLASS/1.jpg    images to learn from and to test with
    CLASS/1.jpg                               images to be divided at random

Further folders may lie above these. Named sets are read as though they lay in such folders.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from preprocessing.cache import open_cached
from preprocessing.sources import (
    NAMED_SETS,
    DataError,
    Found,
    find,
    from_array,
    open_part,
    run_name,
)
from utils import random_at, warn

EVERY = 5  # of so many images one is set apart, up to the DCGAN authors' number
MOST_APART = 10_000


class Labelled(NamedTuple):
    """Images, their classes, and what each is for."""

    images: np.ndarray  # (N, H, W, C) uint8
    labels: np.ndarray  # (N,) int64, positions in `classes`
    classes: list[str]
    learning: np.ndarray  # rows of the images to learn from, in random order
    validation: np.ndarray  # of those to choose settings by
    test: np.ndarray  # of those to test with


def open_labelled(
    data: str,
    image_size: tuple[int, int],
    channels: int,
    seed: int,
    download_dir: str = "data",
    cache_dir: str = "cache",
) -> Labelled:
    """Open the images of `data`, fitted to image_size (height, width) and `channels`.

    If there are folders train and test, what lies under neither is left out. Otherwise a fifth
    becomes the test. Of the images to learn from a fifth becomes the validation. Either takes
    `MOST_APART` at most, and the same share of every class.

    Raises:
        DataError: no such data, or its images can't be read, or their classes are not to be
            told or too small.
    """
    found = find_labelled(data, download_dir)
    cached = open_cached(found, image_size, channels, cache_dir, run_name(data))
    undecoded = dict(cached.skipped[len(found.unreadable) :])
    names = [name for name in found.names if name not in undecoded]  # of cached.images
    if cached.skipped:
        share = f"{len(cached.skipped):,} of {len(cached.skipped) + len(names):,}"
        problem = f"{share} images can't be read; python dataset.py {data} lists them"
        if len(cached.skipped) > len(names):
            raise DataError(f"--data {data}: {problem}")
        warn(problem)

    places = [re.split(r"[/\\]", f"//{name}")[-3:-1] for name in names]
    parts, folders = np.array(places).T
    if "" in folders:
        stray = names[folders.tolist().index("")]
        raise DataError(f"--data {data}: {stray} lies in no folder that would be its class")
    learning, test = np.flatnonzero(parts == "train"), np.flatnonzero(parts == "test")
    if len(learning) and len(test):
        left_out = len(names) - len(learning) - len(test)
        if left_out:
            warn(f"{left_out:,} images lie neither in train nor in test, and are left out")
    else:
        learning, test = set_apart(np.arange(len(names)), folders, seed, "test")
    learning, validation = set_apart(learning, folders, seed, "validation")

    classes = np.unique(folders[np.concatenate([learning, validation, test])])
    labels = np.searchsorted(classes, folders)  # meaningless for what is left out
    if len(classes) < 2:
        raise DataError(f"--data {data}: all images are in {classes[0]}; two classes are needed")
    counts = np.bincount(labels[learning], minlength=len(classes))
    if counts.min() == 0:
        raise DataError(f"--data {data}: no image of {classes[counts.argmin()]} to learn from")
    return Labelled(cached.images, labels, classes.tolist(), learning, validation, test)


def set_apart(
    rows: np.ndarray, folders: np.ndarray, seed: int, purpose: str
) -> tuple[np.ndarray, np.ndarray]:
    """Divide `rows` into most of them and some, at random, with the same share of each folder."""
    order = random_at(seed, purpose, 0).permutation(rows)
    every = max(EVERY, -(-len(rows) // MOST_APART))
    apart = order[np.argsort(folders[order], kind="stable")][::every]
    return order[~np.isin(order, apart)], apart


def find_labelled(data: str, download_dir: str) -> Found:
    """Find images as `sources.find`; those of a named set's parts lie in PART/CLASS.

    Raises:
        DataError: as `sources.find`, or the set has no classes.
    """
    if Path(data).exists() or data not in NAMED_SETS:
        return find(data, download_dir)
    if data == "celeba":
        raise DataError("--data celeba: its faces are of no classes")
    if data == "digits":
        from sklearn.datasets import load_digits

        found, places = find(data, download_dir), load_digits().target
    else:
        parts = {part: open_part(data, download_dir, part) for part in ("train", "test")}
        found = from_array(data, np.concatenate([array for array, _ in parts.values()]))
        places = [f"{part}/{int(label)}" for part in parts for label in parts[part][1]]
    names = [f"{place}/{name}" for place, name in zip(places, found.names, strict=True)]
    return found._replace(names=names)
