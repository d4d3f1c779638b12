"""Generate images from a checkpoint: one grid, or one file each.

    python generate.py --load_path checkpoints/digits/last.pth --num_output 64
    python generate.py --load_path X.pth --num_output 10000 --separate --output images

An image depends on its seed alone: seed 5 is the same image alone and in any batch.
"""

from __future__ import annotations

import io
import math
import os
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn
from tqdm import tqdm

from dataset import to_image
from models import GENERATE_BATCH, generate, sample_latents
from serialization.export import EXPORTS, export
from serialization.load import LoadSettings
from utils import (
    SettingsError,
    atomic_write,
    check_writable,
    make_grid,
    parse_settings,
    run_script,
    setting,
)
from visualization.figures import as_pillow
from visualization.latents import parse_seeds

MAX_WRITERS = 8  # threads; more would mostly wait for Python's lock


@dataclass(frozen=True, kw_only=True)
class Request(LoadSettings):
    """What to generate, and where to.

    Raises:
        SettingsError: a value out of its range, or settings that exclude each other.
    """

    num_output: int | None = setting("images", None, "how many", shown="64", minimum=1)
    seed: int | None = setting(
        "images", None, "seed of the first; the others count up", shown="0", minimum=0
    )
    seeds: str | None = setting("images", None, "these instead, such as 0-63,100", shown="none")
    separate: bool = setting("files", False, "one file an image, seed_000005.png, in a folder")
    output: str | None = setting(
        "files", None, "the PNG, or with --separate the folder",
        shown="samples/generated.png, samples/generated",
    )  # fmt: skip
    export_checkpoint: str | None = setting(
        "files", None, "write the networks to this .pth file and one beside it, small, to pass on",
        shown="none",
    )  # fmt: skip
    export_state_dict: str | None = setting(
        "files", None, "write the generator's weights alone to this .pth file, and no images",
        shown="none",
    )  # fmt: skip
    export_onnx: str | None = setting(
        "files", None, "write the generator to this .onnx file, and no images", shown="none"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exported is not None:
            for name in (*EXPORTS, "num_output", "seed", "seeds", "separate", "output"):
                if name != self.exported and getattr(self, name):
                    raise SettingsError(f"--{name} cannot be combined with --{self.exported}")
        if self.seeds is not None and (self.num_output, self.seed) != (None, None):
            raise SettingsError("--seeds cannot be combined with --seed or --num_output")

    @property
    def exported(self) -> str | None:
        """The flag that asks for another file than images, one of EXPORTS."""
        return next((flag for flag in EXPORTS if getattr(self, flag) is not None), None)


def generate_images(request: Request) -> Path:
    """Generate images or export a network; return the file or the folder that was written.

    Raises:
        SettingsError, CheckpointError: before anything is written.
    """
    # Refuse what cannot work before anything is written.
    first = request.seed or 0
    ranges = [range(first, first + (request.num_output or 64))]
    if request.seeds is not None:
        ranges = parse_seeds(request.seeds)
    count = sum(seeds.stop - seeds.start for seeds in ranges)
    generator = request.load_generator()
    if request.exported is not None:
        output = Path(getattr(request, request.exported))
        return export(generator, request.exported, output, Path(request.load_path))
    output = Path(request.output or "samples/generated" + ".png" * (not request.separate))
    if request.separate:
        check_folder(output)
    else:
        check_grid(output, count, *generator.image_size)

    # Generate and write.
    batches = generate_batches(generator, chain.from_iterable(ranges))
    with tqdm(total=count, unit="image", disable=None) as bar:
        if request.separate:
            output.mkdir(parents=True, exist_ok=True)
            for written in write_files(output, batches):
                bar.update(written)
        else:
            parts = []
            for _, images in batches:
                parts.append(images)
                bar.update(len(images))
            output.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(output) as file:
                make_grid(np.concatenate(parts)).save(file, "PNG")
    print(f"Wrote {count:,} images to {output}")
    return output


def generate_batches(
    generator: nn.Module, seeds: Iterable[int]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield seeds and their images (N, H, W, C) uint8, at most `GENERATE_BATCH` at a time."""
    seeds = iter(seeds)
    while batch := list(islice(seeds, GENERATE_BATCH)):
        z = sample_latents(batch, generator.z_dim, generator.z_dist)
        yield batch, to_image(generate(generator, z))


def check_grid(output: Path, count: int, height: int, width: int) -> None:
    """Refuse a grid that is not a .png file, or that no image viewer would open."""
    if math.ceil(math.sqrt(count)) ** 2 * (height + 2) * (width + 2) > Image.MAX_IMAGE_PIXELS:
        raise SettingsError(f"{count:,} images are too many for one grid: add --separate")
    if output.suffix.lower() != ".png" or output.is_dir():
        raise SettingsError(f"--output {output}: must be a .png file, or add --separate")
    check_writable(output.parent)


def check_folder(output: Path) -> None:
    """Refuse a folder with other files, which a reader would take for generated images."""
    check_writable(output)
    for path in output.iterdir() if output.is_dir() else ():
        if not re.fullmatch(r"seed_\d{6,}\.png|\..*", path.name):
            raise SettingsError(f"--output {output}: has other files, such as {path.name}")


def write_files(folder: Path, batches: Iterable[tuple[list[int], np.ndarray]]) -> Iterator[int]:
    """Write batches of seeds and images (N, H, W, C) uint8; yield the N of each one written.

    Threads write while the caller generates; at most two batches for each of them are held.

    Raises:
        OSError: naming the file that could not be written.
    """
    writers = min(os.cpu_count() or 1, MAX_WRITERS)
    pending: deque[Future[int]] = deque()
    with ThreadPoolExecutor(writers) as pool:
        for seeds, images in batches:
            if len(pending) == 2 * writers:
                yield pending.popleft().result()
            pending.append(pool.submit(write_batch, folder, seeds, images))
        for batch in pending:
            yield batch.result()


def write_batch(folder: Path, seeds: list[int], images: np.ndarray) -> int:
    """Write images (N, H, W, C) uint8 to the files of their seeds; return N."""
    for seed, image in zip(seeds, images, strict=True):
        path = folder / f"seed_{seed:06d}.png"
        encoded = io.BytesIO()
        # Generated images have no repeats to look for: as small as by Pillow's default, twice as
        # fast (1,950 images/s of 64x64 a thread on a Zen 4), and without Python's lock.
        as_pillow(image).save(encoded, "PNG", compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY)
        try:
            path.write_bytes(encoded.getbuffer())
        except OSError as error:
            if error.filename is None:  # opened, but not filled: a full disk, which names no file
                path.unlink()
                error.filename = str(path)
            raise
    return len(seeds)


if __name__ == "__main__":
    run_script(lambda: generate_images(parse_settings(Request, __doc__)))
