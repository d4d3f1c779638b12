"""What explore.py's commands share: a checkpoint, its images, a file that can be made again."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dataset import to_image
from models import GENERATE_BATCH, Generator, generate
from serialization.checkpoint import SHIPPED
from serialization.load import LoadSettings
from utils import SettingsError, check_writable, flag, setting
from visualization.figures import Cell, lay_out, write_png
from visualization.latents import read_latents


@dataclass(frozen=True, kw_only=True)
class Command(LoadSettings):
    """What every command takes.

    A subclass has an `output`, and a `make(output, generator)` which draws into that file.

    Raises:
        SettingsError: a value out of its range.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".png",)  # that its output may have

    scale: int = setting("files", 1, "times to enlarge each image, pixel for pixel", minimum=1)

    def run(self) -> Path:
        """Draw what the command is for, and give the path of the file.

        Raises:
            SettingsError, CheckpointError: before anything is written.
        """
        output = self.open_output()
        self.make(output, self.load_generator())
        print(f"Wrote {output}")
        return output

    def open_output(self) -> Path:
        """Return the file to write, whose folder can be written to.

        Raises:
            SettingsError: it can't, or the name ends in none of `suffixes`.
        """
        output, suffixes = Path(self.output), " or ".join(self.suffixes)
        if output.suffix.lower() not in self.suffixes or output.is_dir():
            raise SettingsError(f"--output {output}: must be a {suffixes} file")
        check_writable(output.parent)
        return output

    def read(
        self, generator: Generator, text: str, flag: str = "--seeds"
    ) -> tuple[list[str], Tensor]:
        """Return the names and the latents (N, Z) of a list, see `latents.read_latents`."""
        return read_latents(text, generator.z_dim, generator.z_dist, flag)

    def check_count(self, generator: Generator, count: int) -> None:
        """Refuse so many images that no viewer would open a sheet of them.

        Raises:
            SettingsError: saying what to do.
        """
        height, width = generator.image_size
        if count * height * width * self.scale**2 > Image.MAX_IMAGE_PIXELS:
            raise SettingsError(
                f"{count:,} images of {height * self.scale}x{width * self.scale} pixels are too "
                "many for one file: ask for fewer or smaller ones"
            )

    def draw(self, generator: Generator, z: Tensor) -> np.ndarray:
        """Draw the images (N, H, W, C) uint8 of latents z (N, Z), `scale` times their size.

        Raises:
            SettingsError: they are too many, see `check_count`.
        """
        self.check_count(generator, len(z))
        batches = []
        with tqdm(total=len(z), unit="image", disable=None, leave=False) as bar:
            for rows in z.split(GENERATE_BATCH):
                batches.append(to_image(generate(generator, rows)))
                bar.update(len(rows))
        return self.enlarge(np.concatenate(batches))

    def enlarge(self, images: np.ndarray) -> np.ndarray:
        """Return images (N, H, W, C) at `scale` times their size."""
        return images.repeat(self.scale, axis=1).repeat(self.scale, axis=2)

    def line(self) -> str:
        """Return the command line that makes the same images again."""
        left_out = {"output", "device"} | (
            {"load_path"} if self.load_path == str(SHIPPED) else set()
        )
        words = ["python", "explore.py", type(self).__name__.lower()]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in left_out and value is not None and value is not False:
                name = [] if field.metadata["positional"] else [flag(field)]
                values = value if isinstance(value, list) else [value] * (value is not True)
                words += name + list(map(str, values))
        return shlex.join(words)

    def write(self, output: Path, rows: list[list[Cell]]) -> None:
        """Write a sheet of cells, see `sheet.lay_out`."""
        output.parent.mkdir(parents=True, exist_ok=True)
        write_png(output, lay_out(rows), self.line())
