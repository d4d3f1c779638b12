"""Draw pictures from a checkpoint: one grid, or one file each.

    python generate.py --load_path checkpoints/digits/last.pth --num_output 64
    python generate.py --load_path X.pth --num_output 10000 --separate --output pictures

A picture depends on its seed alone: seed 5 is the same picture however many are drawn with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from checkpoint import CheckpointError
from dataset import make_grid, to_image, to_picture
from models import DRAW_BATCH, Generator, draw, sample_latents
from utils import (
    REQUIRED,
    SettingsError,
    check_settings,
    check_writable,
    parse_settings,
    pick_device,
    run_script,
    setting,
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to draw, and where to.

    Raises:
        SettingsError: a value out of its range, or `seeds` beside `seed` or `num_output`.
    """

    load_path: str = setting("pictures", REQUIRED, "the checkpoint, a .pth file")
    num_output: int | None = setting("pictures", None, "how many", shown="64", minimum=1)
    seed: int | None = setting(
        "pictures", None, "seed of the first; the others count up", shown="0", minimum=0
    )
    seeds: str | None = setting("pictures", None, "these instead, such as 0-63,100", shown="none")
    separate: bool = setting("files", False, "one file a picture, seed_000005.png, in a folder")
    output: str | None = setting(
        "files", None, "the PNG, or with --separate the folder",
        shown="samples/generated.png, samples/generated",
    )  # fmt: skip
    device: str = setting("run", "auto", "cpu, cuda, cuda:1, mps; auto: cuda or cpu")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.seeds is not None and (self.num_output, self.seed) != (None, None):
            raise SettingsError("--seeds says it all: leave out --seed and --num_output")

    def seed_ranges(self) -> list[range]:
        """Give the seeds as ranges, in the order asked for.

        Raises:
            SettingsError: `seeds` is not a list of numbers and ranges of them.
        """
        if self.seeds is None:
            first = self.seed or 0
            return [range(first, first + (self.num_output or 64))]
        ranges = []
        for part in self.seeds.split(","):
            match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if last < first:
                raise SettingsError(f"--seeds {self.seeds}: write it like 0-63,100")
            ranges.append(range(first, last + 1))
        return ranges


def generate(request: Request) -> Path:
    """Draw what is asked for and give the PNG or the folder that was written.

    Raises:
        SettingsError, CheckpointError: before anything is written.
    """
    ranges = request.seed_ranges()
    count = sum(seeds.stop - seeds.start for seeds in ranges)
    generator = Generator.from_checkpoint(request.load_path, pick_device(request.device))
    default = "samples/generated" if request.separate else "samples/generated.png"
    output = Path(request.output or default)
    check_writable(output if request.separate else output.parent)
    if request.separate:
        check_folder(output)
    else:
        check_grid(output, count, *generator.image_size)

    images = draw_images(generator, chain.from_iterable(ranges))
    images = tqdm(images, total=count, unit="picture", disable=None)
    if request.separate:
        output.mkdir(parents=True, exist_ok=True)
        for seed, image in zip(chain.from_iterable(ranges), images, strict=True):
            to_picture(image).save(output / f"seed_{seed:06d}.png")
    else:
        grid = make_grid(np.stack(list(images)))
        output.parent.mkdir(parents=True, exist_ok=True)
        grid.save(output)
    print(f"Wrote {count:,} pictures to {output}")
    return output


def draw_images(generator: Generator, seeds: Iterable[int]) -> Iterator[np.ndarray]:
    """Draw the picture (H, W, C) uint8 of each seed, holding one batch of them at a time."""
    seeds = iter(seeds)
    while batch := list(islice(seeds, DRAW_BATCH)):
        z = sample_latents(batch, generator.z_dim, generator.z_dist)
        yield from to_image(draw(generator, z))


def check_grid(output: Path, count: int, height: int, width: int) -> None:
    """Refuse a grid that no picture viewer would open, or that has no picture's name."""
    if math.ceil(math.sqrt(count)) ** 2 * (height + 2) * (width + 2) > Image.MAX_IMAGE_PIXELS:
        raise SettingsError(f"{count:,} pictures are too many for one grid: add --separate")
    if output.suffix.lower() != ".png" or output.is_dir():
        raise SettingsError(f"--output {output}: must be a .png file, or add --separate")


def check_folder(output: Path) -> None:
    """Refuse a folder with other files, which whoever reads it would take for pictures of ours."""
    for path in output.iterdir() if output.is_dir() else ():
        if not re.fullmatch(r"seed_\d{6,}\.png|\..*", path.name):
            raise SettingsError(f"--output {output}: has other files, such as {path.name}")


if __name__ == "__main__":
    run_script(lambda: generate(parse_settings(Request, __doc__)), CheckpointError)
