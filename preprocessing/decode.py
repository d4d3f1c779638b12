"""Images become uint8 pixels: decoded in parallel, whatever they hold, and fitted to one size.

Apart from dataset.py so that a worker process, which imports what it runs, need not import torch.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from preprocessing.sources import DataError, Found

CHUNK = 64  # images that a process decodes at a time
MAX_PIXELS = 40_000_000  # to decode, at 8 bytes each and more; a JPEG's after it was scaled down
FILES_PER_PROCESS = 256  # fewer are decoded sooner than another process starts


class Decoded(NamedTuple):
    """One image as it was found, and as uint8 pixels (H, W, channels), or why it has none."""

    pixels: np.ndarray | None
    mode: str = ""
    width: int = 0
    height: int = 0
    channels: int = 0  # as stored: 1, 2 (grey with alpha), 3 or 4
    reason: str = ""
    lasting: bool = True  # the reason lies in the file, not in a disk that may be back soon


def decode_all(
    found: Found, size: tuple[int, int], channels: int | None
) -> Iterator[tuple[str, Decoded]]:
    """Yield the name and the decoding of every image, in order, showing the progress.

    Works in as many processes as pay, and holds a few chunks of images however many there are.
    """
    decode = functools.partial(_decode_all, found.open, size, channels)
    bar = tqdm(
        total=len(found.names), desc="Reading images", unit="image", disable=None, leave=False
    )
    chunks = (found.names[i : i + CHUNK] for i in range(0, len(found.names), CHUNK))
    files = 0 if found.in_memory else len(found.names)
    with bar, contextlib.closing(_in_processes(decode, chunks, files)) as results:
        for first, result in zip(itertools.count(0, CHUNK), results, strict=False):
            yield from zip(found.names[first : first + CHUNK], result, strict=True)
            bar.update(len(result))


def _in_processes(call: Callable, items: Iterable, files: int) -> Iterator:
    """Map `call` over items that stand for so many files, in as many processes as pay.

    Only a few results at a time wait to be taken.
    """
    processes = min(os.cpu_count() or 1, 32, files // FILES_PER_PROCESS)
    if processes < 2:
        yield from map(call, items)
        return
    pending: deque = deque()
    try:
        with ProcessPoolExecutor(processes, initializer=_begin_process) as pool:
            for item in items:
                pending.append(pool.submit(call, item))
                if len(pending) > processes + 2:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    except BrokenProcessPool as error:
        reason = "the system has killed a process that was reading images; is memory short?"
        raise DataError(reason) from error


def _begin_process() -> None:
    """Leave Ctrl-C to the caller's process, and end when that has gone, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_caller, daemon=True).start()


def _end_with_caller() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def suits(stored: Collection[int]) -> int:
    """Return the channels that suit images stored with these: 1 grey, 3 colour, 4 with alpha.

    4 if every one has alpha, 1 if every one is grey, else 3.
    """
    if set(stored) <= {2, 4}:
        return 4
    return 1 if set(stored) <= {1, 2} else 3


def _decode_all(
    open_one: Callable[[str], Image.Image],
    size: tuple[int, int],
    channels: int | None,
    names: Sequence[str],
) -> list[Decoded]:
    return [_decode(open_one, size, channels, name) for name in names]


def _decode(
    open_one: Callable[[str], Image.Image], size: tuple[int, int], channels: int | None, name: str
) -> Decoded:
    """Decode one image, fit it to size (height, width), and never raise for what it holds."""
    try:
        with warnings.catch_warnings(action="ignore"), open_one(name) as image:
            mode, (width, height) = image.mode, image.size
            if mode == "F" or (mode == "I" and image.format == "TIFF"):
                raise ValueError(f"32-bit pixels ({mode}), whose range is not known")
            # A JPEG decodes at a half, quarter or eighth several times faster. Twice the size
            # wanted is left to the resampling, and a turned image keeps enough too.
            image.draft(None, (2 * max(size), 2 * max(size)))
            # A progressive JPEG is held whole while it decodes, at whatever size.
            held = (width, height) if image.info.get("progressive") else image.size
            if held[0] * held[1] > MAX_PIXELS:
                raise ValueError(f"more than {MAX_PIXELS / 1e6:.0f} million pixels")
            image.load()
            with contextlib.suppress(Exception):  # a broken EXIF block costs no pixels
                ImageOps.exif_transpose(image, in_place=True)
            image = _standard(image)
            stored = len(image.getbands())
            image = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
            if channels:
                image = to_channels(image, channels)
            return Decoded(np.asarray(image).reshape(*size, -1), mode, width, height, stored)
    except UnidentifiedImageError:
        return Decoded(None, reason="not an image, or a broken one")
    except Exception as error:  # a broken image makes Pillow raise nearly anything
        system = getattr(error, "strerror", None)
        reason = system or str(error) or type(error).__name__
        passing = isinstance(error, MemoryError) or (
            system and not isinstance(error, PermissionError)
        )
        return Decoded(None, reason=reason, lasting=not passing)


def _standard(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to L, LA, RGB or RGBA, keeping what the image shows."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which `convert` would clip to white
        levels = np.asarray(image)
        return Image.fromarray((levels // 257 + (levels % 257 > 128)).astype(np.uint8))
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode == "P":
        palette = np.reshape(image.getpalette("RGB"), (-1, 3))
        grey = bool((palette == palette[:, :1]).all())
    if image.has_transparency_data:
        return _as_mode(image, "LA" if grey else "RGBA")
    return _as_mode(image, "L" if grey else "RGB")


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image; one that is right already is not copied, as Pillow would."""
    return image if image.mode == mode else image.convert(mode)


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert an L, LA, RGB or RGBA image to 1 (grey), 3 (RGB) or 4 (RGBA) channels."""
    if channels == 4:
        return _as_mode(image, "RGBA")
    if image.mode in ("LA", "RGBA"):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return _as_mode(image, "L" if channels == 1 else "RGB")
