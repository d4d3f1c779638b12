"""Files and named sets become one uint8 array of pictures; batches come from it by position.

python dataset.py PATH      the data doctor: what is in PATH, and what the network will see of it
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from decode import Source, decode_all, stack

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

# What counts as a picture by its name; decode.FORMATS bounds what may open it.
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm",
            ".pgm", ".pbm", ".avif", ".jp2"}  # fmt: skip


class DataError(ValueError):
    """Data that cannot be trained on; the message is one line that says what to do."""


class Pictures(NamedTuple):
    """What `read` found: images (N, H, W, C) uint8, and a name, mode and size for each of them."""

    images: np.ndarray
    names: list[str]
    modes: list[str]
    sizes: list[tuple[int, int]]
    skipped: list[tuple[str, str]]  # name and reason of each picture that could not be read


def to_tensor(images: np.ndarray | Tensor) -> Tensor:
    """Turn images (N, H, W, C) of 0..255 into a float32 tensor (N, C, H, W) in [-1, 1]."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1


def to_image(x: Tensor) -> np.ndarray:
    """Turn a tensor (N, C, H, W) in [-1, 1] into uint8 images (N, H, W, C): to_tensor's inverse."""
    levels = ((x.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def make_grid(images: np.ndarray) -> Image.Image:
    """Lay images (N, H, W, C) uint8 out in rows on black, as square as N allows, 2 pixels apart."""
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.zeros((rows * (height + 2) + 2, columns * (width + 2) + 2, channels), np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 2) + 2, i % columns * (width + 2) + 2
        grid[top : top + height, left : left + width] = image
    return to_picture(grid)


def to_picture(image: np.ndarray) -> Image.Image:
    """Turn an image (H, W, C) uint8 into a picture that Pillow saves."""
    return Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)


def random_at(seed: int, purpose: str, position: int) -> np.random.Generator:
    """Give the random numbers of one position: the order of an epoch, the flips of a step.

    They follow from the arguments alone, so that a resumed run needs no saved generator state.
    """
    return np.random.default_rng([seed, position, *purpose.encode()])


def batches(
    images: np.ndarray, batch_size: int, seed: int, first_step: int = 0, mirror: bool = False
) -> Iterator[Tensor]:
    """Yield the uint8 batch (batch_size, H, W, C) of every step from `first_step` on, for ever.

    Each epoch is a new permutation, its incomplete last batch dropped. With `mirror`, each
    picture is flipped left to right with probability 1/2.
    """
    steps_per_epoch = len(images) // batch_size
    for step in itertools.count(first_step):
        epoch, index = divmod(step, steps_per_epoch)
        if index == 0 or step == first_step:
            order = random_at(seed, "order", epoch).permutation(len(images))
        batch = images[order[index * batch_size : (index + 1) * batch_size]]
        if mirror:
            flipped = random_at(seed, "mirror", step).random(batch_size) < 0.5
            batch[flipped] = batch[flipped, :, ::-1]
        yield torch.from_numpy(batch)


def parse_size(text: str | int) -> tuple[int, int]:
    """Turn 64, "64" or "64x96" (height x width, in pixels) into (height, width)."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(text))
    if match is None:
        raise DataError(f"--image_size {text}: give it as 64 or, height x width, 64x96")
    return int(match[1]), int(match[2] or match[1])


def run_name(data: str) -> str:
    """Name a run after its data: the last part of a path, without the suffix of a file."""
    path = Path(data).resolve()
    return (path.stem if path.is_file() else path.name) or "root"


def load(
    data: str,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    download_dir: str = "data",
) -> np.ndarray:
    """Read all pictures of `data` into one uint8 array (N, H, W, C) and report what was skipped.

    Args:
        data: a folder, searched with its subfolders; a .zip of one; or one of `NAMED_SETS`. A
            path that exists wins over a name.
        image_size: (height, width) in pixels; None takes the set's own, 64x64 for files.
        channels: 1, 3 or 4; None finds them, see `read`.
        download_dir: where torchvision's sets are, or are downloaded to.

    Raises:
        DataError: no such data, no pictures in it, or more than half of them unreadable.
    """
    pictures = read(data, image_size, channels, download_dir)
    if pictures.skipped:
        few = "; ".join(f"{name} ({reason})" for name, reason in pictures.skipped[:5])
        more = f"; all are listed by: python dataset.py {data}" if len(pictures.skipped) > 5 else ""
        print(
            f"Skipped {len(pictures.skipped):,} of {len(pictures.skipped) + len(pictures.names):,}"
            f" files that can't be read: {few}{more}",
            file=sys.stderr,
        )
    return pictures.images


def read(
    data: str,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    download_dir: str = "data",
) -> Pictures:
    """Decode every picture of `data` once, in parallel; arguments and errors as for `load`.

    Unless `channels` says, they follow from how the pictures are stored: 4 if every one has
    alpha, 1 if every one is grey, else 3. Alpha that is not kept goes over white.
    """
    names, sources, skipped = _find(data, download_dir)
    named = data in NAMED_SETS and not Path(data).exists()
    size = image_size or (NAMED_SETS[data] if named else DEFAULT_IMAGE_SIZE,) * 2
    if len(sources) == 0:
        listed = " ".join(sorted(SUFFIXES))
        raise DataError(f"--data {data}: no pictures in it or its subfolders ({listed})")

    found = []
    for name, decoded in zip(names, decode_all(sources, size, channels), strict=True):
        if decoded.pixels is None:
            skipped.append((name, decoded.reason))
        else:
            found.append((name, decoded))
    if len(skipped) > len(found):
        raise DataError(
            f"--data {data}: {len(skipped):,} of {len(skipped) + len(found):,} pictures can't be "
            f"read, the first being {skipped[0][0]} ({skipped[0][1]})"
        )
    return Pictures(
        images=stack([decoded.pixels for _, decoded in found]),
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
        found += [os.path.join(root, name) for name in files]
    found = [os.path.relpath(path, folder) for path in found]
    names = sorted(filter(_is_picture, found), key=lambda name: PurePath(name).parts)
    return names, [str(folder / name) for name in names], unreadable


def _find_members(
    archive: Path,
) -> tuple[list[str], list[tuple[str, str]], list[tuple[str, str]]]:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info.filename for info in opened.infolist() if not info.is_dir()]
    except zipfile.BadZipFile:
        raise DataError(f"--data {archive}: neither a folder nor a .zip that can be read") from None
    names = sorted(filter(_is_picture, members), key=lambda name: name.split("/"))
    return names, [(str(archive), name) for name in names], []


def _is_picture(name: str) -> bool:
    """Tell by the name; hidden files and what macOS adds to archives are none."""
    path = PurePath(name)
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
        opened = kinds[name](download_dir, download=True)  # their training part
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


# The data doctor ---------------------------------------------------------------------------------

ALIKE = 5.0  # levels of 255, root mean square: above re-saved JPEGs, below pictures that differ


@torch.no_grad()
def find_alike(images: np.ndarray, mirror: bool = False) -> list[tuple[int, int]]:
    """Find the pairs i < j of images (N, H, W, C) uint8 that are alike, or alike when mirrored.

    Alike means differing by at most `ALIKE`, so that copies saved again as JPEG count. Candidates
    come from 8x8 grey thumbnails, which can't differ by more than the pictures do.
    """
    x = to_tensor(images).mean(1, keepdim=True) * 127.5
    thumbnails = F.adaptive_avg_pool2d(x, 8).flatten(1)
    wanted = F.adaptive_avg_pool2d(x.flip(3), 8).flatten(1) if mirror else thumbnails
    pairs = []
    starts = range(0, len(images), 1000)
    for start in tqdm(starts, desc="Comparing pictures", disable=None, leave=False):
        distances = torch.cdist(wanted[start : start + 1000], thumbnails) / 8
        for row, j in (distances < ALIKE + 0.5).nonzero().tolist():
            i = start + row
            first = images[i][:, ::-1] if mirror else images[i]
            if i < j and np.square(first.astype(float) - images[j]).mean() <= ALIKE**2:
                pairs.append((i, j))
    return pairs


def examine(pictures: Pictures, contact_sheet: Path) -> str:
    """Write a sheet of up to 64 of the pictures, spread over them all, and report on the set."""
    images, names = pictures.images, pictures.names
    count, height, width, channels = images.shape
    spread = images[np.linspace(0, count - 1, min(count, 64)).round().astype(int)]
    contact_sheet.parent.mkdir(parents=True, exist_ok=True)
    make_grid(spread).save(contact_sheet)

    sizes = Counter(f"{wide}x{high}" for wide, high in pictures.sizes)
    lines = [
        f"{count:,} pictures; the network will see {channels} channels of {height}x{width} pixels "
        f"(height x width)",
        "width x height: " + _counted(sizes),
        "stored as: " + _counted(Counter(pictures.modes)),
        f"can't be read: {len(pictures.skipped):,}",
        *(f"    {name}: {reason}" for name, reason in pictures.skipped),
    ]
    for kind, pairs in (
        ("copies of another", find_alike(images)),
        ("mirror images of another", find_alike(images, mirror=True)),
    ):
        lines.append(f"{kind}: {len({j for _, j in pairs}):,}")
        lines += [f"    {names[j]} of {names[i]}" for i, j in pairs[:10]]
        lines += [f"    and {len(pairs) - 10:,} more pairs"] * (len(pairs) > 10)
    return "\n".join([*lines, f"contact sheet: {contact_sheet}"])


def _counted(counter: Counter) -> str:
    common = ", ".join(f"{what} ({count:,})" for what, count in counter.most_common(5))
    return common + f" and {len(counter) - 5:,} others" * (len(counter) > 5)


def main() -> None:
    """Run the data doctor of the command line."""
    parser = argparse.ArgumentParser(description="Report on pictures before training on them.")
    parser.add_argument("data", help="a folder, a .zip, or one of: " + ", ".join(NAMED_SETS))
    parser.add_argument("--image_size", metavar="64|64x96", help="what to train at (default: 64)")
    parser.add_argument("--channels", type=int, choices=(1, 3, 4), help="(default: found)")
    parser.add_argument("--download_dir", default="data", help="of named sets (default: data)")
    parser.add_argument("--output", metavar="PNG", help="the contact sheet (default: in samples)")
    parser.error = lambda message: parser.exit(2, f"dataset.py: {message}\n")
    flags = parser.parse_args()
    try:
        size = parse_size(flags.image_size) if flags.image_size else None
        pictures = read(flags.data, size, flags.channels, flags.download_dir)
    except ValueError as error:
        parser.error(str(error))
    output = flags.output or f"samples/{run_name(flags.data)}/contact_sheet.png"
    print(examine(pictures, Path(output)))


if __name__ == "__main__":
    main()
