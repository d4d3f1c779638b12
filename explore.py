"""Look inside a generator, as section 6 of the paper does.

    python explore.py pick --load_path X.pth --seeds 0-99
    python explore.py walk --load_path X.pth --seeds 3,17,22 --loop --output walk.mp4
    python explore.py arithmetic "3,17,22 - 4,9,11 + 5,6,8" --load_path X.pth
    python explore.py turn --from 3,17,22,30 --to 4,9,11,12 --seeds 50-57 --load_path X.pth
    python explore.py invert photo.jpg --load_path X.pth --output photo.png
    python explore.py features --load_path X.pth --data path/to/cats
    python explore.py dropout --load_path X.pth --boxes "3:10,12,30,28; 17:8,10,26,30"
    python explore.py serve --load_path X.pth

Wherever seeds stand, so may files of latents: 3,photo.npy,8-10 takes all rows of that file, and
photo.npy:0 its first. What is written holds the command that draws it: a PNG in its text, a WebP as
its description, a GIF as its comment, an MP4 not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset import load, to_image, to_tensor
from metrics.features import untrained
from models import GENERATE_BATCH, Generator, generate, recalibrate
from preprocessing.decode import to_channels
from serialization.load import LoadSettings
from utils import REQUIRED, SettingsError, parse_settings, run_script, setting
from visualization.animation import FRAMES_A_SECOND, SUFFIXES, write_animation
from visualization.command import Command
from visualization.directions import read_displacement
from visualization.figures import Cell, as_pillow, in_lines
from visualization.filters import (
    Box,
    activations_of,
    as_image,
    dim,
    find_filters,
    guided_gradient,
    in_batches,
    maps_of,
    mark,
    read_boxes,
    strongest,
    without,
)
from visualization.inversion import Invert
from visualization.latents import combine, neighbours, read_terms, rescale, turn, walk

SIGN = 28  # size of a sum's signs, in pixels


@dataclass(frozen=True, kw_only=True)
class Pick(Command):
    """Draw the images of many seeds, each with its number, to choose from.

    All may be moved along the directions that the generator's first layer answers most.
    """

    seeds: str = setting("images", "0-99", "which, such as 0-63,100")
    move: str | None = setting(
        "images", None, "how far along which, such as 1:2.5,3:-4; a latent of 100 dimensions "
        "lies at 10, and stays there", shown="none",
    )  # fmt: skip
    output: str = setting("files", "samples/pick.png", "the PNG to write")

    def make(self, output: Path, generator: Generator) -> None:
        """Draw the sheet, as square as the number of images allows."""
        names, z = self.read(generator, self.seeds)
        if self.move is not None:
            z = turn(z, read_displacement(generator, self.move), 2)[:, 1]
        cells = list(map(Cell, self.draw(generator, z), names))
        columns = math.ceil(math.sqrt(len(cells)))
        self.write(output, [cells[i : i + columns] for i in range(0, len(cells), columns)])


@dataclass(frozen=True, kw_only=True)
class Walk(Command):
    """Go from latent to latent: an animation, or a strip with a row a leg, as figure 4."""

    suffixes: ClassVar = (".png", *SUFFIXES)

    seeds: str = setting("images", "0-8", "the latents to pass, such as 3,17,22")
    path: str = setting(
        "images", "spherical", "between them; straight goes through paler images",
        choices=("spherical", "straight"),
    )  # fmt: skip
    loop: bool = setting("images", False, "go back to the first at the end")
    frames: int | None = setting(
        "images", None, "steps from one to the next", shown="30; in a .png 9", minimum=1
    )
    output: str = setting(
        "files", "samples/walk.webp", "a .webp, .gif or .mp4, or the strip, a .png"
    )

    def make(self, output: Path, generator: Generator) -> None:
        """Draw the animation, of 25 frames a second, or the strip.

        A row of the strip begins with one latent of the list and ends with the next.
        """
        names, z = self.read(generator, self.seeds)
        if len(z) < 2:
            raise SettingsError(f"--seeds {self.seeds}: a walk takes two or more")
        strip = output.suffix.lower() == ".png"
        frames = self.frames or (9 if strip else 30)
        self.check_count(generator, len(z) * frames)
        images = self.draw(generator, walk(z, frames, self.path, self.loop))
        if strip:
            cells = list(map(Cell, images))
            cells[::frames] = map(Cell, images[::frames], names)
            cells += cells[:1] * self.loop
            legs = range(0, len(cells) - 1, frames)
            self.write(output, [cells[i : i + frames + 1] for i in legs])
        else:
            output.parent.mkdir(parents=True, exist_ok=True)
            images = [to_channels(as_pillow(image), 3) for image in images]
            durations = [1000 // FRAMES_A_SECOND] * len(images)
            write_animation(output, images, durations, self.line())


@dataclass(frozen=True, kw_only=True)
class Arithmetic(Command):
    """Add and subtract concepts, each the mean of some latents, as figure 7.

    In the middle of the last block is the result, and around it neighbours with noise of 0.25. The
    means and the result are drawn at the norm that a latent of training has.
    """

    expression: str = setting(
        "images", REQUIRED, 'such as "3,17,22 - 4,9,11 + 5,6,8", a space before each sign',
        positional=True,
    )  # fmt: skip
    output: str = setting("files", "samples/arithmetic.png", "the PNG to write")

    def make(self, output: Path, generator: Generator) -> None:
        """Draw the sheet: a column a concept, its mean beneath, the result."""
        signs, lists = zip(*read_terms(self.expression), strict=True)
        where = "expression, a space before each sign:"
        read = (self.read(generator, text, where) for text in lists)
        names, concepts = zip(*read, strict=True)
        means = torch.stack([z.mean(0) for z in concepts])
        result = rescale(combine(list(zip(signs, concepts, strict=True))), generator.z_dist)
        around = neighbours(result)
        block = [around[:4], result[None], around[4:]]
        z = torch.cat([*concepts, rescale(means, generator.z_dist), *block])
        images = iter(self.draw(generator, z))

        equation = max(map(len, names))  # the row of the means, their signs and the result
        cells = [[Cell()] * (2 * len(signs) + 4) for _ in range(equation + 2)]
        for column, labels in enumerate(names):
            for row, label in enumerate(labels, equation - len(labels)):
                cells[row][2 * column + 1] = Cell(next(images), label)
        for column, sign in enumerate(signs):
            text = "-" if sign < 0 else "+" * (column > 0)
            cells[equation][2 * column : 2 * column + 2] = (
                Cell(None, text, SIGN),
                Cell(next(images), "mean"),
            )
        cells[equation][-4] = Cell(None, "=", SIGN)
        for i, image in enumerate(images):
            cells[equation - 1 + i // 3][i % 3 - 3] = Cell(image, "result" * (i == 4))
        self.write(output, cells)


@dataclass(frozen=True, kw_only=True)
class Turn(Command):
    """Move latents along the vector between the means of two groups of others, as figure 8.

    Each row has a latent in its middle, and the vector taken off to its left and added to its
    right. Its norm stays, without which the ends would glare.
    """

    from_: str = setting("images", REQUIRED, "a group such as 3,17,22,30: the left of the rows")
    to: str = setting("images", REQUIRED, "the group that differs from it: the right")
    seeds: str = setting("images", "0-7", "the latents to move, such as 50-57")
    steps: int = setting("images", 9, "images a row; odd to have the latent's own", minimum=2)
    output: str = setting("files", "samples/turn.png", "the PNG to write")

    def make(self, output: Path, generator: Generator) -> None:
        """Draw the sheet, a row a latent."""
        start = self.read(generator, self.from_, "--from")[1]
        end = self.read(generator, self.to, "--to")[1]
        names, z = self.read(generator, self.seeds)
        self.check_count(generator, len(z) * self.steps)
        moved = turn(z, combine([(1, end), (-1, start)]), self.steps)
        images = iter(self.draw(generator, moved.flatten(0, 1)))
        cells = [[Cell(), *(Cell(None, f"{t:.2g}") for t in torch.linspace(-1, 1, self.steps))]]
        for name in names:
            cells.append([Cell(None, name), *map(Cell, islice(images, self.steps))])
        self.write(output, cells)


@dataclass(frozen=True, kw_only=True)
class Features(Command):
    """Draw what excites the filters of the discriminator's last convolution, as figure 5.

    For each filter, the images that it answers most, of those drawn from seeds or of a data set;
    beneath them, by guided backpropagation, what in them it answers. On the left, the same for the
    filters of an untrained discriminator.
    """

    seeds: str | None = setting("images", None, "images to look through", shown="0-511")
    data: str | None = setting(
        "images", None, "or real ones: a folder, a .zip, or a set by name", shown="none"
    )
    download_dir: str = setting("images", "data", "folder of downloaded sets")
    cache_dir: str = setting("images", "cache", "folder of decoded images")
    filters: int = setting("filters", 6, "how many, from the first on", minimum=1)
    shown: int = setting("filters", 6, "images for each", minimum=1)
    seed: int = setting("filters", 0, "of the untrained weights", minimum=0, below=2**63)
    output: str = setting("files", "samples/features.png", "the PNG to write")

    def __post_init__(self) -> None:
        super().__post_init__()
        if None not in (self.seeds, self.data):
            raise SettingsError("--seeds, --data: give one of them")

    def make(self, output: Path, generator: Generator) -> None:
        """Draw the sheet, two rows a filter."""
        trained = self.load_discriminator(generator)
        self.check_count(generator, 4 * self.filters * self.shown)
        if self.data is None:
            names, z = self.read(generator, self.seeds or "0-511")
            batches = tqdm(z.split(GENERATE_BATCH), desc="Drawing", disable=None, leave=False)
            images = np.concatenate([to_image(generate(generator, rows)) for rows in batches])
        else:
            size, folders = generator.image_size, (self.download_dir, self.cache_dir)
            images = load(self.data, size, generator.channels, *folders)
            names = [""] * len(images)

        random = untrained(trained, self.seed)
        recalibrate(random, in_batches(images, random))
        blocks = []
        for title, network in (("random", random), ("trained", trained)):
            try:
                found = strongest(network, images, self.filters, self.shown)
            except ValueError as error:
                raise SettingsError(f"--filters {self.filters}: {error}") from None
            block = [[Cell(None, title)]]
            for i, rows in enumerate(found):
                seen = as_image(guided_gradient(network, to_tensor(images[rows]), i))
                labels = (names[row] for row in rows)
                block.append(list(map(Cell, self.enlarge(images[rows]), labels)))
                block.append(list(map(Cell, self.enlarge(seen))))
            block[0] += [Cell()] * (found.shape[1] - 1)
            blocks.append(block)
        self.write(output, [[*left, Cell(), *right] for left, right in zip(*blocks, strict=True)])


@dataclass(frozen=True, kw_only=True)
class Dropout(Command):
    """Find the generator's filters that draw what boxes mark, and draw without them, as figure 6.

    A logistic regression tells the places of a layer inside the boxes from others, and the filters
    to which it gives positive weights are dropped. The upper block has the marked images, with
    what is outside of their boxes dimmed, and the lower one others; beneath each, without them.

    The paper has its "second highest convolution layer", of which it drops 200 filters. Here that
    is the second from z: layers nearer to the image can't spare half of theirs.
    """

    boxes: str = setting(
        "images", REQUIRED, "seed:left,top,right,bottom in pixels: 3:10,12,30,28; 17,22:8,9,26,27"
    )
    seeds: str = setting("images", "0-7", "other images to draw without them")
    layer: int | None = setting(
        "filters", None, "the hidden layer, of which 1 comes first after z", shown="2", minimum=1
    )
    seed: int = setting("filters", 0, "of the places outside", minimum=0, below=2**63)
    output: str = setting("files", "samples/dropout.png", "the PNG to write")

    def make(self, output: Path, generator: Generator) -> None:
        """Draw the sheet."""
        layers = len(activations_of(generator))
        layer = min(2, layers) if self.layer is None else self.layer
        if not 0 < layer <= layers:
            raise SettingsError(f"--layer {layer}: the last hidden layer is {layers}")
        marks: dict[tuple[float, ...], tuple[str, list[Box]]] = {}  # of each latent
        for text, box in read_boxes(self.boxes, generator.image_size):
            for name, z in zip(*self.read(generator, text, "--boxes"), strict=True):
                marks.setdefault(tuple(z.tolist()), (name, []))[1].append(box)
        z, (named, boxes) = torch.tensor(list(marks)), zip(*marks.values(), strict=True)
        marked = mark(boxes, generator.image_size)
        names, others = self.read(generator, self.seeds)
        self.check_count(generator, 3 * len(z) + 2 * len(others))
        try:
            filters = find_filters(maps_of(generator, z, layer), marked, self.seed) > 0
        except ValueError as error:
            raise SettingsError(f"--boxes {self.boxes}: {error}") from None
        print(f"Layer {layer} of {layers}: dropped {filters.sum()} of {len(filters)} filters")
        lacking = without(generator, layer, filters)

        def cells(z: Tensor, names: Iterable[str]) -> list[list[Cell]]:
            whole = map(Cell, self.draw(generator, z), names)
            return [list(whole), list(map(Cell, self.draw(lacking, z)))]

        shown = self.enlarge(dim(to_image(generate(generator, z)), marked))
        rows = in_lines(list(map(Cell, shown)), *cells(z, named))
        self.write(output, rows + in_lines(*cells(others, names)))


@dataclass(frozen=True, kw_only=True)
class Serve(LoadSettings):
    """Open a page in the browser to look around: seeds and directions, arithmetic, walks.

    It needs Gradio, and shows the command that draws each image. Whoever reaches it may name
    files of latents, so it is for this machine alone unless --host says otherwise.
    """

    host: str = setting("page", "127.0.0.1", "address to serve at; 0.0.0.0 lets other machines in")
    port: int | None = setting(
        "page", None, "its port", shown="the first free one from 7860", minimum=1, below=1 << 16
    )
    open: bool = setting("page", False, "open a browser with it")

    def run(self) -> None:
        """Serve the page until Ctrl-C."""
        try:
            from visualization.app import check_address, serve
        except ModuleNotFoundError as error:
            raise SettingsError(f"serve needs {error.name}: pip install gradio") from None
        check_address(self.host, self.port)
        generator = self.load_generator()
        shared = {field.name: getattr(self, field.name) for field in fields(LoadSettings)}

        def draw(name: str, output: Path, **asked: Any) -> str:
            command = COMMANDS[name](**shared, **asked)
            command.make(output, generator)
            return command.line()

        serve(draw, generator, self.host, self.port, self.open)


COMMANDS = {
    "pick": Pick, "walk": Walk, "arithmetic": Arithmetic, "turn": Turn,
    "invert": Invert, "features": Features, "dropout": Dropout, "serve": Serve,
}  # fmt: skip

if __name__ == "__main__":
    run_script(lambda: parse_settings(COMMANDS, __doc__).run())
