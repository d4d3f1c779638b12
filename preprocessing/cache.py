"""The images of a data set as one uint8 array in a file: decoded once, mapped ever after.

A cache is a folder, named after all that its pixels follow from: `pixels`, the array as it lies
in memory, and `about.json`. It is built under another name and then renamed, so that it is whole
or not there, and two runs that build the same one end with one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import PIL
from PIL import features

from preprocessing.decode import decode_all, suits
from preprocessing.sources import DataError, Found, formats

FORMAT = 2  # of the cache, and of how an image becomes pixels
ABANDONED = 600.0  # seconds after which a build that has written nothing is taken for dead
SAMPLE = 64  # images that tell the channels of all


class Cached(NamedTuple):
    """All images that could be read, and how they were found."""

    images: np.ndarray  # (N, H, W, C) uint8, pages of a file that are read when they are used
    modes: dict[str, int]  # Pillow's name of a way to store pixels, and how many there are
    sizes: dict[str, int]  # "height x width" as stored
    skipped: list[tuple[str, str]]  # name and reason of each image that could not be read


def open_cached(
    found: Found,
    size: tuple[int, int],
    channels: int | None,
    cache_dir: str,
    name: str,
    retry: bool = True,
) -> Cached:
    """Return the images `found`, fitted to size (height, width), building their cache if need be.

    Unless `channels` says, they follow from how the images are stored: 4 if every one has
    alpha, 1 if every one is grey, else 3. Alpha that is not kept goes over white.

    Args:
        cache_dir: the folder of all caches.
        name: what the folder of this one begins with, for people.
        retry: read all anew if an image was skipped for what may have passed, a disk that was
            away; not when another process of this run has just done so.

    Raises:
        DataError: the cache can't be written.
    """
    jpeg = features.version("jpg")
    made_of = json.dumps([FORMAT, found.stamp, *size, PIL.__version__, jpeg, formats()])
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    key = f"{size[0]}x{size[1]}-{digest}"
    folder = _folder(cache_dir, name, f"{key}-found")
    about = _about(folder)
    if channels and (about is None or about["shape"][3] != channels):  # a resumed run's are found
        folder = _folder(cache_dir, name, f"{key}-{channels}")
        about = _about(folder)
    if about is None or (retry and not about["lasting"]):
        try:
            _discard(folder)
            _build(found, size, channels, folder)
        except OSError as error:
            raise DataError(
                f"--cache_dir {cache_dir}: the images can't be kept there "
                f"({error.filename or folder}: {error.strerror})"
            ) from error
        about = json.loads((folder / "about.json").read_text("utf-8"))
    images = np.empty(about["shape"], np.uint8)
    if len(images):  # an empty file can't be mapped
        # Not "r", as torch warns of arrays it may not write to; what "c" writes stays in memory.
        images = np.memmap(folder / "pixels", np.uint8, "c", shape=tuple(about["shape"]))
    skipped = [(name, reason) for name, reason in about["skipped"]]
    return Cached(np.asarray(images), about["modes"], about["sizes"], found.unreadable + skipped)


def _folder(cache_dir: str, name: str, key: str) -> Path:
    """Return the cache with this key, whatever its data were called when it was made."""
    there = sorted(Path(cache_dir).glob(f"*-{key}"))
    return there[0] if there else Path(cache_dir, f"{name}-{key}")


def _about(folder: Path) -> dict[str, Any] | None:
    """Return what is known of a cache, or None if it is not there with all its pixels."""
    try:
        about = json.loads((folder / "about.json").read_text("utf-8"))
        whole = (folder / "pixels").stat().st_size == math.prod(about["shape"])
    except (OSError, ValueError):
        return None
    return about if whole else None


def _discard(folder: Path) -> None:
    """Delete a cache if it is there, under another name, as half of it must not be taken for it."""
    with contextlib.suppress(FileNotFoundError):  # another run was sooner
        doomed = _building(folder)
        os.rename(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def clear(cache_dir: str) -> None:
    """Delete every cache in `cache_dir`, and nothing else that may be there."""
    for folder in Path(cache_dir).glob("*"):
        if re.fullmatch(r".+-\d+x\d+-[0-9a-f]{16}-(found|\d)", folder.name):
            _discard(folder)
    for path in Path(cache_dir).glob("*-*-" + "[0-9a-f]" * 16 + ".npy"):  # features of images
        path.unlink(missing_ok=True)
    _sweep(Path(cache_dir))


def _building(folder: Path) -> Path:
    """Return a name under which `folder` may be incomplete."""
    return folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.building")


def _sweep(cache_dir: Path) -> None:
    """Delete what builds that were killed have left."""
    for left in cache_dir.glob("*.building"):
        with contextlib.suppress(FileNotFoundError):  # that build has just ended
            changed = max(path.stat().st_mtime for path in (left, *left.iterdir()))
            if time.time() - changed > ABANDONED:
                shutil.rmtree(left)


def _build(found: Found, size: tuple[int, int], channels: int | None, folder: Path) -> None:
    """Decode into a folder beside `folder`, and give it that name when all is on the disk."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    wanted = channels or suits(_sampled_channels(found, size))
    needed = len(found.names) * size[0] * size[1] * wanted
    if needed > shutil.disk_usage(folder.parent).free:
        reason = f"{needed / 1e9:,.1f} GB are needed, which are not free"
        raise OSError(errno.ENOSPC, reason, str(folder.parent))
    building = _building(folder)
    building.mkdir()
    try:
        stored = _write(building, found, size, wanted)
        if channels is None and stored and suits(stored) != wanted:  # the sample misled
            _write(building, found, size, suits(stored))
        try:
            os.rename(building, folder)
        except OSError:
            if not folder.exists():  # else another run was sooner
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _sampled_channels(found: Found, size: tuple[int, int]) -> set[int]:
    """Return the channels that some images, spread over all, are stored with."""
    spread = found.names[:: -(-len(found.names) // SAMPLE)]
    decoded = decode_all(found._replace(names=spread), size, None)
    return {image.channels for _, image in decoded if image.pixels is not None}


def _write(building: Path, found: Found, size: tuple[int, int], channels: int) -> set[int]:
    """Write all images and what there is to say of them; give the channels they are stored with.

    The array is never in memory: its pages belong to the file.
    """
    count, skipped, stored, lasting = 0, [], set(), True
    modes: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    with open(building / "pixels", "wb") as file:
        for name, image in decode_all(found, size, channels):
            if image.pixels is None:
                skipped.append((name, image.reason))
                lasting = lasting and image.lasting
                continue
            file.write(image.pixels)
            count += 1
            stored.add(image.channels)
            modes[image.mode] += 1
            sizes[f"{image.height}x{image.width}"] += 1
        _flush(file)
    about = {
        "shape": (count, *size, channels), "modes": modes, "sizes": sizes, "skipped": skipped,
        "lasting": lasting,
    }  # fmt: skip
    with open(building / "about.json", "w", encoding="utf-8") as file:
        json.dump(about, file)
        _flush(file)
    return stored


def _flush(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())
