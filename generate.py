"""Draw images from a checkpoint: one grid, or one file each.

    python generate.py --load_path checkpoints/digits/last.pth --num_output 64
    python generate.py --load_path X.pth --num_output 10000 --separate --output images

An image depends on its seed alone: seed 5 is the same image however many are drawn with it.
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
    """What to draw, and where to.

    Raises:
        SettingsError: a value out of its range, or `seeds` beside `seed` or `num_output`.
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
        if self.exports is not None:
            for name in (*EXPORTS, "num_output", "seed", "seeds", "separate", "output"):
                if name != self.exports and getattr(self, name):
                    raise SettingsError(
                        f"--{name}: --{self.exports} writes one file alone; leave the rest out"
                    )
        if self.seeds is not None and (self.num_output, self.seed) != (None, None):
            raise SettingsError("--seeds says it all: leave out --seed and --num_output")

    @property
    def exports(self) -> str | None:
        """The flag that asks for another file than images, one of EXPORTS."""
        return next((flag for flag in EXPORTS if getattr(self, flag) is not None), None)

    def seed_ranges(self) -> list[range]:
        """Return the seeds as ranges, in the order asked for.

        Raises:
            SettingsError: `seeds` is not a list of numbers and ranges of them.
        """
        if self.seeds is None:
            first = self.seed or 0
            return [range(first, first + (self.num_output or 64))]
        return parse_seeds(self.seeds)


def generate_images(request: Request) -> Path:
    """Draw what is asked for and give the PNG, the folder or the exported file that was written.

    Raises:
        SettingsError, CheckpointError: before anything is written.
    """
    ranges = request.seed_ranges()
    count = sum(seeds.stop - seeds.start for seeds in ranges)
    generator = request.load_generator()
    if request.exports is not None:
        output = Path(getattr(request, request.exports))
        return export(generator, request.exports, output, Path(request.load_path))
    default = "samples/generated" if request.separate else "samples/generated.png"
    output = Path(request.output or default)
    check_writable(output if request.separate else output.parent)
    if request.separate:
        check_folder(output)
    else:
        check_grid(output, count, *generator.image_size)

    drawn = draw_batches(generator, chain.from_iterable(ranges))
    with tqdm(total=count, unit="image", disable=None) as bar:
        if request.separate:
            output.mkdir(parents=True, exist_ok=True)
            for written in write_files(output, drawn):
                bar.update(written)
        else:
            batches = []
            for _, images in drawn:
                batches.append(images)
                bar.update(len(images))
            output.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(output) as file:
                make_grid(np.concatenate(batches)).save(file, "PNG")
    print(f"Wrote {count:,} images to {output}")
    return output


def draw_batches(
    generator: nn.Module, seeds: Iterable[int]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Draw images (N, H, W, C) uint8, at most `GENERATE_BATCH` at a time, beside their seeds."""
    seeds = iter(seeds)
    while batch := list(islice(seeds, GENERATE_BATCH)):
        z = sample_latents(batch, generator.z_dim, generator.z_dist)
        yield batch, to_image(generate(generator, z))


def check_grid(output: Path, count: int, height: int, width: int) -> None:
    """Refuse a grid that no image viewer would open, or that has no image's name."""
    if math.ceil(math.sqrt(count)) ** 2 * (height + 2) * (width + 2) > Image.MAX_IMAGE_PIXELS:
        raise SettingsError(f"{count:,} images are too many for one grid: add --separate")
    if output.suffix.lower() != ".png" or output.is_dir():
        raise SettingsError(f"--output {output}: must be a .png file, or add --separate")


def check_folder(output: Path) -> None:
    """Refuse a folder with other files, which whoever reads it would take for images of ours."""
    for path in output.iterdir() if output.is_dir() else ():
        if not re.fullmatch(r"seed_\d{6,}\.png|\..*", path.name):
            raise SettingsError(f"--output {output}: has other files, such as {path.name}")


def write_files(folder: Path, drawn: Iterable[tuple[list[int], np.ndarray]]) -> Iterator[int]:
    """Write batches of seeds and their images (N, H, W, C) uint8; yield the N of each one done.

    Threads write while the caller draws, and at most two batches for each of them are held.

    Raises:
        OSError: naming the file that could not be written.
    """
    writers = min(os.cpu_count() or 1, MAX_WRITERS)
    pending: deque[Future[int]] = deque()
    with ThreadPoolExecutor(writers) as pool:
        for seeds, images in drawn:
            if len(pending) == 2 * writers:
                yield pending.popleft().result()
            pending.append(pool.submit(write_batch, folder, seeds, images))
        for batch in pending:
            yield batch.result()


def write_batch(folder: Path, seeds: list[int], images: np.ndarray) -> int:
    """Write images (N, H, W, C) uint8 to the files of their seeds and return N."""
    for seed, image in zip(seeds, images, strict=True):
        path = Path(folder, f"seed_{seed:06d}.png")
        encoded = io.BytesIO()
        # Generated images have no repeats to look for: as small as by Pillow's default, twice as
        # fast (1,950 images/s of 64x64 a thread on a Zen 4).
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
