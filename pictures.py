"""Pictures of a folder, an archive or a named set: found, and decoded to uint8 pixels.

Apart from dataset.py so that a worker process, which imports what it runs, need not import torch.
"""

from __future__ import annotations

import functools
import io
import os
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

# The sets that --data knows by name, with the side in pixels that they train at.
NAMED_SETS = {
    "digits": 32,
    "mnist": 28,
    "fashion_mnist": 28,
    "cifar10": 32,
    "svhn": 32,
    "celeba": 64,
}
DEFAULT_IMAGE_SIZE = 64

# What counts as a picture by its name.
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm",
            ".pgm", ".pbm", ".avif", ".jp2"}  # fmt: skip

# Where a picture is: a file, a member of an archive (its path and the name in it), or here.
Source = str | tuple[str, str] | np.ndarray

# The decoders that may open a file, whatever its suffix. Not EPS or PDF, which run programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")

FILES_PER_PROCESS = 256  # fewer are decoded sooner than another process starts


class DataError(ValueError):
    """Data that cannot be trained on; the message is one line that says what to do."""


class Pictures(NamedTuple):
    """What `read` found: images (N, H, W, C) uint8, and a name, mode and size for each of them."""

    images: np.ndarray
    names: list[str]
    modes: list[str]
    sizes: list[tuple[int, int]]
    skipped: list[tuple[str, str]]  # name and reason of each picture that could not be read


class Decoded(NamedTuple):
    """One file as it was found, and as uint8 pixels (H, W, channels), or why it has none."""

    pixels: np.ndarray | None
    mode: str = ""
    width: int = 0
    height: int = 0
    reason: str = ""


def read(
    data: str,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    download_dir: str = "data",
) -> Pictures:
    """Decode every picture of `data` once, in parallel; arguments as for `load`.

    Unless `channels` says, they follow from how the pictures are stored: 4 if every one has
    alpha, 1 if every one is grey, else 3. Alpha that is not kept goes over white.

    Raises:
        DataError: no such data, or no pictures in it.
    """
    names, sources, skipped = _find(data, download_dir)
    named = data in NAMED_SETS and not Path(data).exists()
    size = image_size or (NAMED_SETS[data] if named else DEFAULT_IMAGE_SIZE,) * 2
    if len(sources) == 0:
        listed = " ".join(sorted(SUFFIXES))
        raise DataError(f"--data {data}: no pictures in it or its subfolders ({listed})")

    found = []
    for name, decoded in zip(names, decode_all(sources, size, channels), strict=True):
        name = name if name.isprintable() else repr(name)  # a report is one line for each
        if decoded.pixels is None:
            skipped.append((name, decoded.reason))
        else:
            found.append((name, decoded))
    return Pictures(
        images=stack([decoded.pixels for _, decoded in found], size),
        names=[name for name, _ in found],
        modes=[decoded.mode for _, decoded in found],
        sizes=[(decoded.width, decoded.height) for _, decoded in found],
        skipped=skipped,
    )


# Finding -----------------------------------------------------------------------------------------


def _find(
    data: str, download_dir: str
) -> tuple[list[str], Sequence[Source], list[tuple[str, str]]]:
    """Give the name and the source of every picture, and the folders that could not be opened."""
    path = Path(data)
    if path.is_dir():
        return _find_files(path)
    if path.is_file():
        return _find_members(path)
    if data in NAMED_SETS:
        return _find_named(data, download_dir)
    raise DataError(
        f"--data {data}: no such folder or .zip file, nor one of the sets {', '.join(NAMED_SETS)}"
    )


def _find_files(folder: Path) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    unreadable: list[tuple[str, str]] = []
    found, visited = [], set()
    report = lambda error: unreadable.append((error.filename, error.strerror))  # noqa: E731
    for root, folders, files in os.walk(folder, followlinks=True, onerror=report):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in visited:  # a link back: a circle, or a second way in
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders.sort()
        found += [os.path.join(root, name) for name in files]
    found = [os.path.relpath(path, folder) for path in found if os.path.isfile(path)]
    names = sorted(filter(_is_picture, found), key=lambda name: PurePath(name).parts)
    return names, [str(folder / name) for name in names], unreadable


def _find_members(
    archive: Path,
) -> tuple[list[str], list[tuple[str, str]], list[tuple[str, str]]]:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info.filename for info in opened.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        raise DataError(f"--data {archive}: neither a folder nor a .zip that can be read") from None
    names = sorted(filter(_is_picture, set(members)), key=lambda name: name.split("/"))
    return names, [(str(archive), name) for name in names], []


def _is_picture(name: str) -> bool:
    """Tell by the name; hidden files and what macOS adds to archives are none."""
    path = PurePath(name.replace("\\", "/"))
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _find_named(
    name: str, download_dir: str
) -> tuple[list[str], Sequence[Source], list[tuple[str, str]]]:
    # Imported here, as either takes longer than all else that a script starts with.
    if name == "digits":
        from sklearn.datasets import load_digits

        arrays = (load_digits().images * (255 / 16)).round().astype(np.uint8)
        return [f"{name} {i}" for i in range(len(arrays))], arrays, []

    from torchvision import datasets

    folder = Path(download_dir) / "celeba" / "img_align_celeba"
    if name == "celeba" and folder.is_dir():
        return _find_files(folder)
    kinds = {
        "mnist": datasets.MNIST,
        "fashion_mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "svhn": datasets.SVHN,
        "celeba": datasets.CelebA,
    }
    try:
        opened = kinds[name](download_dir, download=True)  # the training part, but for CelebA
    except Exception as error:  # no network, no mirror, no disk, no gdown: each its own class
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"--data {name}: not in --download_dir {download_dir}, and downloading it failed "
            f"({type(error).__name__}: {reason})"
        ) from error
    if name == "celeba":
        return _find_files(folder)
    arrays = np.asarray(opened.data)
    if name == "svhn":
        arrays = arrays.transpose(0, 2, 3, 1)  # stored as (N, C, H, W)
    return [f"{name} {i}" for i in range(len(arrays))], arrays, []


# Decoding ----------------------------------------------------------------------------------------


def decode_all(
    sources: Sequence[Source], size: tuple[int, int], channels: int | None
) -> Iterator[Decoded]:
    """Decode in as many processes as pay, in order, showing the progress where a person looks."""
    decode = functools.partial(_decode, size=size, channels=channels)
    processes = min(os.cpu_count() or 1, 32, len(sources) // FILES_PER_PROCESS)
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
        with warnings.catch_warnings(action="ignore"), _open(source) as image:
            mode, (width, height) = image.mode, image.size
            if mode == "F" or (mode == "I" and image.format == "TIFF"):
                raise ValueError(f"32-bit pixels ({mode}), whose range is not known")
            # A JPEG decodes at a half, quarter or eighth several times faster. Twice the size
            # wanted is left to the resampling, and a turned picture keeps enough too.
            image.draft(None, (2 * max(size), 2 * max(size)))
            image = _standard(ImageOps.exif_transpose(image))
            if channels:
                image = to_channels(image, channels)
            image = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
            return Decoded(np.asarray(image).reshape(*size, -1), mode, width, height)
    except UnidentifiedImageError:
        return Decoded(None, reason="not a picture, or a broken one")
    except Exception as error:  # a broken picture makes Pillow raise nearly anything
        return Decoded(None, reason=str(error) or type(error).__name__)


def _open(source: Source) -> Image.Image:
    """Open a source; Pillow refuses a picture of more than 179 million pixels by itself."""
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
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode == "P":
        palette = np.reshape(image.getpalette("RGB"), (-1, 3))
        grey = bool((palette == palette[:, :1]).all())
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


def stack(pixels: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Stack pictures (H, W, 1 to 4) of size (H, W), all with the channels that suit them all."""
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
    return np.reshape(pixels, (len(pixels), *size, channels)).astype(np.uint8, copy=False)
