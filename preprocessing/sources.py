"""Where images are: found in folders, archives and named sets, and opened one at a time.

Free of torch, as images.py is.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from utils import UserError

# The sets that --data knows by name, with the side in pixels that they train at.
NAMED_SETS = {
    "digits": 16,
    "mnist": 28,
    "fashion_mnist": 28,
    "cifar10": 32,
    "svhn": 32,
    "celeba": 64,
}
DEFAULT_IMAGE_SIZE = 64

# What counts as an image by its name.
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm",
            ".pgm", ".pbm", ".avif", ".jp2"}  # fmt: skip

# Archives, which are not looked into when they lie in another.
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")

MAX_MEMBER = 1 << 27  # bytes that an image in an archive may unpack to

# The decoders that may open a file, whatever its suffix. Not EPS or PDF, which run programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")


class DataError(UserError):
    """Data that cannot be trained on; the message is one line that says what to do."""


class Found(NamedTuple):
    """Where the images of a data set are."""

    names: Sequence[str]  # in the order of the data set
    open: Callable[[str], Image.Image]  # opens one by its name
    stamp: str  # a digest of what they are: it changes when a file is added, replaced or removed
    unreadable: list[tuple[str, str]]  # folders and files that aren't opened, and why
    in_memory: bool = False


def find(data: str, download_dir: str = "data") -> Found:
    """Find the images of a folder and its subfolders, of a .zip, or of one of `NAMED_SETS`.

    A path that exists wins over a name.

    Raises:
        DataError: no such data, no images in it, or it can't be downloaded to `download_dir`.
    """
    path = Path(data)
    if path.is_dir():
        found = _find_files(path)
    elif path.is_file():
        found = _find_members(path)
    elif data in NAMED_SETS:
        found = _find_named(data, download_dir)
    else:
        names = ", ".join(NAMED_SETS)
        raise DataError(f"--data {data}: no such folder or .zip file, nor one of the sets {names}")
    if len(found.names) == 0:
        listed = " ".join(sorted(SUFFIXES))
        why = "".join(f"; {name!r}: {reason}" for name, reason in found.unreadable[:3])
        raise DataError(f"--data {data}: no images in it or its subfolders ({listed}){why}")
    return found


def run_name(data: str) -> str:
    """Name a run after its data: the last part of a path, without the suffix of a file."""
    path = Path(data).resolve()
    name = path.stem if path.is_file() else path.name
    # Cut, as a cache is named after it too, at some length, and no name may have over 255 bytes.
    return re.sub(r"[/\\:]|\.$", "_", name[:50]) or "images"


def default_size(data: str) -> tuple[int, int]:
    """Return the (height, width) in pixels that `data` trains at unless one is asked for."""
    named = data in NAMED_SETS and not Path(data).exists()
    return (NAMED_SETS[data] if named else DEFAULT_IMAGE_SIZE,) * 2


def _find_files(folder: Path) -> Found:
    names, unreadable, stamp = [], [], hashlib.sha256()
    for name, status in _walk(folder, "", set(), unreadable):
        names.append(name)
        traits = status.st_size, status.st_mtime_ns, status.st_mode  # or it can be read by now
        stamp.update(b"%b\0%d\0%d\0%d\0" % (os.fsencode(name), *traits))
    return Found(names, functools.partial(_open_file, str(folder)), stamp.hexdigest(), unreadable)


def _walk(
    folder: Path | str,
    prefix: str,
    visited: set[tuple[int, int]],
    unreadable: list[tuple[str, str]],
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the name under `folder` and the status of each image, in the order of the names."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name, reverse=True)
    except OSError as error:
        unreadable.append((str(error.filename), str(error.strerror)))
        return
    if (status.st_dev, status.st_ino) in visited:  # a link back: a circle, or a second way in
        return
    visited.add((status.st_dev, status.st_ino))
    while entries:
        entry = entries.pop()  # not to keep a million of them, each with its status
        if _is_hidden(entry.name):
            continue
        try:
            is_folder, status = entry.is_dir(), None
            if not is_folder and _has_suffix(entry.name):
                status = entry.stat()
        except OSError as error:  # a link to nothing or to itself, or into a folder that is closed
            unreadable.append((prefix + entry.name, str(error.strerror)))
            continue
        if is_folder:
            yield from _walk(entry.path, prefix + entry.name + os.sep, visited, unreadable)
        elif status and stat.S_ISREG(status.st_mode):
            yield prefix + entry.name, status


def _find_members(archive: Path) -> Found:
    """Find an archive's images, which are read one by one and never unpacked onto the disk."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        raise DataError(f"--data {archive}: neither a folder nor a .zip that can be read") from None
    names, refused = set(), []
    for info in members:
        reason = _refusal(info)
        if info.filename in names:  # what is read by a name is the last file that has it
            names.remove(info.filename)
            refused.append((info.filename, "a later file of the archive has the same name"))
        if reason:
            refused.append((info.filename, reason))
        elif _is_image(info.filename):
            names.add(info.filename)
    status = os.stat(archive)
    stamp = hashlib.sha256(b"%d\0%d" % (status.st_size, status.st_mtime_ns)).hexdigest()
    in_order = sorted(names, key=lambda name: name.split("/"))
    return Found(in_order, functools.partial(_open_member, str(archive)), stamp, refused)


def _refusal(member: zipfile.ZipInfo) -> str:
    """Return why a member of an archive is neither read nor ignored, or nothing."""
    name = member.filename.replace("\\", "/")
    if name.lower().endswith(ARCHIVE_SUFFIXES):
        return "an archive in the archive: unpack it first"
    if not _is_image(name):
        return ""
    if name.startswith("/") or ".." in name.split("/") or re.match("[A-Za-z]:", name):
        return "its name leads out of the archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "a link"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "packed by another method than deflate"  # zipfile unpacks those without a limit
    if member.file_size > MAX_MEMBER:
        return f"unpacks to {member.file_size / 1e6:,.0f} MB"
    return ""


def _is_image(member: str) -> bool:
    *folders, name = member.replace("\\", "/").split("/")
    return _has_suffix(name) and not any(map(_is_hidden, [*folders, name]))


def _is_hidden(name: str) -> bool:
    """Return whether it is a hidden file or folder, or what macOS adds to archives."""
    return (name.startswith(".") and name not in (".", "..")) or name == "__MACOSX"


def _has_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _find_named(name: str, download_dir: str) -> Found:
    if name == "digits":
        from sklearn.datasets import load_digits  # takes longer than all else a script starts with

        return from_array(name, (load_digits().images * (255 / 16)).round().astype(np.uint8))
    if name == "celeba":
        folder = Path(download_dir) / "celeba" / "img_align_celeba"
        if not folder.is_dir():
            _open_torchvision(name, download_dir, "train")
        return _find_files(folder)
    return from_array(name, open_part(name, download_dir, "train")[0])


def open_part(name: str, download_dir: str, part: str) -> tuple[np.ndarray, Sequence[int]]:
    """Return a named set's images (N, H, W) or (N, H, W, C) uint8 of one part, and their classes.

    Args:
        name: one of `NAMED_SETS` that torchvision has as arrays, all but digits and celeba.
        part: "train" or "test".

    Raises:
        DataError: it can't be downloaded to `download_dir`.
    """
    if name == "svhn":
        opened = _open_torchvision(name, download_dir, part)
        return opened.data.transpose(0, 2, 3, 1), opened.labels  # stored as (N, C, H, W)
    opened = _open_torchvision(name, download_dir, part == "train")
    return np.asarray(opened.data), opened.targets


def _open_torchvision(name: str, download_dir: str, part: str | bool) -> Any:
    from torchvision import datasets  # as late as scikit-learn's

    kinds = {
        "mnist": datasets.MNIST,
        "fashion_mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "svhn": datasets.SVHN,
        "celeba": datasets.CelebA,
    }
    try:
        return kinds[name](download_dir, part, download=True)
    except Exception as error:  # no network, no mirror, no disk, no gdown: each its own class
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"--data {name}: not in --download_dir {download_dir}, and downloading it failed "
            f"({type(error).__name__}: {reason})"
        ) from error


def from_array(name: str, array: np.ndarray) -> Found:
    """Return images (N, H, W) or (N, H, W, C) uint8 as found, by names that end in their rows."""
    names = [f"{name} {i}" for i in range(len(array))]
    stamp = hashlib.sha256(np.ascontiguousarray(array)).hexdigest()
    return Found(names, functools.partial(_open_row, array), stamp, [], in_memory=True)


# Opening -----------------------------------------------------------------------------------------


def _open_file(folder: str, name: str) -> Image.Image:
    """Open a file; Pillow refuses an image of more than 179 million pixels by itself."""
    return Image.open(os.path.join(folder, name), formats=formats())


def _open_member(archive: str, name: str) -> Image.Image:
    opened = _archive(archive, os.stat(archive).st_mtime_ns, os.getpid())
    size = opened.getinfo(name).file_size
    with opened.open(name) as member:  # no more than it says: `opened.read` would unpack it all
        return Image.open(io.BytesIO(member.read(size)), formats=formats())


def _open_row(array: np.ndarray, name: str) -> Image.Image:
    return Image.fromarray(array[int(name.split()[-1])])


@functools.cache
def formats() -> list[str]:
    """Return those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


@functools.lru_cache(maxsize=1)
def _archive(path: str, modified: int, process: int) -> zipfile.ZipFile:
    """Keep one archive open in each process: a file position can't be shared with a forked one."""
    return zipfile.ZipFile(path)
