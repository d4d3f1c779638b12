"""One picture file of any kind becomes upright 8-bit pixels of one size, or the reason why not.

Apart from dataset.py so that a worker process which has to import its function need not import
torch for it.
"""

from __future__ import annotations

import functools
import io
import os
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

# Where a picture is: a file, a member of an archive (its path and the name in it), or here.
Source = str | tuple[str, str] | np.ndarray

# The decoders that may open a file, whatever its suffix. Not EPS or PDF, which run programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")

FILES_PER_PROCESS = 256  # fewer are decoded sooner than another process starts


class Decoded(NamedTuple):
    """One file as it was found, and as uint8 pixels (H, W, channels), or why it has none."""

    pixels: np.ndarray | None
    mode: str = ""
    width: int = 0
    height: int = 0
    reason: str = ""


def decode_all(
    sources: Sequence[Source], size: tuple[int, int], channels: int | None
) -> Iterator[Decoded]:
    """Decode in as many processes as pay, in order, showing the progress where a person looks."""
    decode = functools.partial(_decode, size=size, channels=channels)
    processes = min(os.cpu_count() or 1, len(sources) // FILES_PER_PROCESS)
    bar = functools.partial(
        tqdm, total=len(sources), desc="Reading pictures", unit="picture", disable=None, leave=False
    )
    if processes < 2 or isinstance(sources, np.ndarray):
        yield from bar(map(decode, sources))
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from bar(pool.map(decode, sources, chunksize=64))


def _decode(source: Source, size: tuple[int, int], channels: int | None) -> Decoded:
    """Decode one picture, fit it to size (height, width), and never raise for what it holds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _open(source) as image:
                mode, (width, height) = image.mode, image.size
                # A JPEG decodes at a half, quarter or eighth several times faster. Twice the
                # size wanted is left to the resampling, and a turned picture keeps enough too.
                image.draft(None, (2 * max(size), 2 * max(size)))
                image = _standard(ImageOps.exif_transpose(image))
                if channels:
                    image = to_channels(image, channels)
                image = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
                return Decoded(np.asarray(image).reshape(*size, -1), mode, width, height)
    except Exception as error:  # a broken picture makes Pillow raise nearly anything
        return Decoded(None, reason=str(error).replace(repr(source), "it") or repr(error))


def _open(source: Source) -> Image.Image:
    if isinstance(source, np.ndarray):
        return Image.fromarray(source)
    if isinstance(source, tuple):
        archive, member = source
        modified = os.stat(archive).st_mtime_ns
        source = io.BytesIO(_archive(archive, modified, os.getpid()).read(member))
    return Image.open(source, formats=_formats())


@functools.cache
def _formats() -> list[str]:
    """Give those of FORMATS that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@functools.lru_cache(maxsize=1)
def _archive(path: str, modified: int, process: int) -> zipfile.ZipFile:
    """Keep one archive open in each process: a file position can't be shared with a forked one."""
    return zipfile.ZipFile(path)


def _standard(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to L, LA, RGB or RGBA, keeping what the picture shows."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which `convert` would clip to white
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("32-bit pixels beyond 0..65535, whose range is not known")
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return image.convert("LA" if grey else "RGBA")
    return image.convert("L" if grey else "RGB")


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert an L, LA, RGB or RGBA picture to 1 (grey), 3 (RGB) or 4 (RGBA) channels."""
    if channels == 4:
        return image.convert("RGBA")
    if image.mode in ("LA", "RGBA"):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


def stack(pixels: list[np.ndarray]) -> np.ndarray:
    """Stack pictures (H, W, 1 to 4) into one array, all with the channels that suit them all."""
    stored = {picture.shape[2] for picture in pixels}
    if stored <= {2, 4}:
        channels = 4
    elif stored <= {1, 2}:
        channels = 1
    else:
        channels = 3
    if stored != {channels}:
        pixels = [
            np.asarray(to_channels(Image.fromarray(picture.squeeze()), channels))
            for picture in pixels
        ]
    return np.stack(pixels).reshape(len(pixels), *pixels[0].shape[:2], channels)
