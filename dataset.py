"""Files and named sets become one uint8 array of images; batches come from it by position.

python dataset.py PATH      the data doctor: what is in PATH, and what the network will see of it
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from preprocessing.cache import Cached, clear, open_cached
from preprocessing.sources import NAMED_SETS, DataError, Found, default_size, find, run_name
from utils import atomic_write, make_grid, parse_size, run_script

CPU = torch.device("cpu")


def to_tensor(images: np.ndarray | Tensor) -> Tensor:
    """Convert images (N, H, W, C) of 0..255 into a float32 tensor (N, C, H, W) in [-1, 1]."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).div(127.5).sub_(1)


def to_image(x: Tensor) -> np.ndarray:
    """Convert a tensor (N, C, H, W) in [-1, 1] to uint8 images (N, H, W, C)."""
    levels = ((x.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def load(
    data: str,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    download_dir: str = "data",
    cache_dir: str = "cache",
    clear_cache: bool = False,
    retry: bool = True,
) -> np.ndarray:
    """Return all images of `data` as one uint8 array (N, H, W, C), and report what was skipped.

    The array is mapped from a file in `cache_dir`, read-only, which is made the first time.

    Args:
        data: a folder, searched with its subfolders; a .zip of one; or one of `NAMED_SETS`. A
            path that exists wins over a name.
        image_size: (height, width) in pixels; None takes the set's own, 64x64 for files.
        channels: 1, 3 or 4; None finds them, see `cache.open_cached`.
        download_dir: where torchvision's sets are, or are downloaded to.
        cache_dir: where the arrays of all data sets are kept.
        clear_cache: delete all of those first.
        retry: see `cache.open_cached`.

    Raises:
        DataError: no such data, no images in it, or more than half of them unreadable.
    """
    found, size = find(data, download_dir), image_size or default_size(data)
    if clear_cache:
        clear(cache_dir)
    images, _, _, skipped = open_cached(found, size, channels, cache_dir, run_name(data), retry)
    if skipped:
        share = f"{len(skipped):,} of {len(skipped) + len(images):,}"
        which = "; ".join(f"{printable(name)} ({reason})" for name, reason in skipped[:5])
        if len(skipped) > 5:
            which += f"; python dataset.py {data} lists all"
        if len(skipped) > len(images):
            raise DataError(f"--data {data}: {share} images can't be read: {which}")
        print(f"Skipped {share} images that can't be read: {which}", file=sys.stderr)
    return images


def printable(name: str) -> str:
    """Return a file's name as it can stand in one line of a report."""
    return name if name.isprintable() else repr(name)


# The data doctor ---------------------------------------------------------------------------------

ALIKE = 5.0  # levels of 255, root mean square: above re-saved JPEGs, below images that differ


def find_alike(images: np.ndarray, mirror: bool = False) -> list[tuple[int, int]]:
    """Find the images (N, H, W, C) uint8 that are alike an earlier one, or its mirror image.

    Gives pairs (earlier, later), one for each later image. Alike means differing by at most
    `ALIKE`, so that copies saved again as JPEG count. Of exact copies, only the first is compared
    with others; its time grows with the square of N, a minute at 100,000.
    """
    first_of: dict[bytes, int] = {}
    digests = (hashlib.sha256(image).digest() for image in images)
    copies = [(first_of.setdefault(digest, i), i) for i, digest in enumerate(digests)]
    pairs = [] if mirror else [(i, j) for i, j in copies if i != j]
    distinct = np.array(list(first_of.values()))

    # Means over a grid of 8 cells a side or a few more, which differ by little more than ALIKE
    # where the images don't differ by more.
    cell = images.shape[1] // 8, images.shape[2] // 8
    both = []
    for rows in _chunks(distinct):
        grey = images[rows].mean(3, dtype=np.float32)  # torch's blocks would leave holes behind
        sides = torch.from_numpy(np.stack([grey, grey[:, :, ::-1]], 1))
        both.append(F.avg_pool2d(sides, cell).flatten(2))
    thumbnails, turned = torch.cat(both).unbind(1)
    wanted = turned if mirror else thumbnails
    bound = 1.2 * ALIKE * thumbnails.shape[1] ** 0.5
    chunks = _chunks(np.arange(len(distinct)))
    for rows in tqdm(chunks, desc="Comparing images", disable=None, leave=False):
        distances = torch.cdist(wanted[rows], thumbnails)
        for row, near in zip(rows, distances < bound, strict=True):
            j = distinct[row]
            image = images[j][:, ::-1] if mirror else images[j]
            for i in distinct[near[:row].nonzero().flatten().numpy()]:
                if np.square(image.astype(float) - images[i]).mean() <= ALIKE**2:
                    pairs.append((int(i), int(j)))
                    break
    return sorted(pairs, key=lambda pair: pair[1])


def _chunks(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, -(-len(rows) // 256))


def examine(found: Found, cached: Cached, contact_sheet: Path) -> str:
    """Write a sheet of up to 64 of the images, spread over them all, and report on the set."""
    images, undecoded = cached.images, dict(cached.skipped[len(found.unreadable) :])
    names = [printable(name) for name in found.names if name not in undecoded]
    lines = [f"images: {len(images):,}"]
    if names:
        spread = images[np.linspace(0, len(images) - 1, min(len(images), 64)).round().astype(int)]
        with atomic_write(contact_sheet) as file:
            make_grid(spread).save(file, "PNG")
        height, width, channels = images.shape[1:]
        lines += [
            "height x width: " + _counted(Counter(cached.sizes)),
            "stored as: " + _counted(Counter(cached.modes)),
            f"the network will see: {height}x{width}, {channels} channels, as in {contact_sheet}",
        ]
        for kind, pairs in (
            ("copies", find_alike(images)),
            ("mirror images", find_alike(images, mirror=True)),
        ):
            lines.append(f"{kind} of an earlier image, within {ALIKE:g} levels: {len(pairs):,}")
            lines += [f"    {names[j]} of {names[i]}" for i, j in pairs[:10]]
            lines += [f"    and {len(pairs) - 10:,} more"] * (len(pairs) > 10)
    lines.append(f"can't be read: {len(cached.skipped):,}")
    lines += [f"    {printable(name)}: {reason}" for name, reason in cached.skipped]
    return "\n".join(lines)


def _counted(counter: Counter) -> str:
    common = ", ".join(f"{what} ({count:,})" for what, count in counter.most_common(5))
    return common + f" and {len(counter) - 5:,} others" * (len(counter) > 5)


def main() -> None:
    """Run the data doctor of the command line."""
    parser = argparse.ArgumentParser(description="Report on images before training on them.")
    parser.add_argument("data", help="a folder, a .zip, or one of: " + ", ".join(NAMED_SETS))
    parser.add_argument("--image_size", metavar="64|64x96", help="(default: 64, or the set's own)")
    parser.add_argument("--channels", type=int, choices=(1, 3, 4), help="(default: found)")
    parser.add_argument("--download_dir", default="data", help="of named sets (default: data)")
    parser.add_argument("--cache_dir", default="cache", help="of decoded images (default: cache)")
    parser.add_argument("--output", metavar="PNG", help="the contact sheet (default: in samples)")
    parser.error = lambda message: parser.exit(2, f"dataset.py: {message}\n")
    flags = parser.parse_args()
    output = Path(flags.output or f"samples/{run_name(flags.data)}/contact_sheet.png")
    if output.suffix.lower() != ".png":
        parser.error(f"--output {output}: must be a .png file")
    size = parse_size(flags.image_size) if flags.image_size else None
    found, size = find(flags.data, flags.download_dir), size or default_size(flags.data)
    output.parent.mkdir(parents=True, exist_ok=True)
    cached = open_cached(found, size, flags.channels, flags.cache_dir, run_name(flags.data))
    print(examine(found, cached, output))


if __name__ == "__main__":
    run_script(main)
