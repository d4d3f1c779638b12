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
photo.npy:0 its first. A PNG holds the command that makes it again, in its text.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dataset import load, printable, to_image, to_tensor
from metrics.features import untrained
from models import GENERATE_BATCH, Generator, generate, recalibrate
from serialization.checkpoint import SHIPPED, CheckpointError
from serialization.load import LoadSettings
from utils import (
    REQUIRED,
    SettingsError,
    check_writable,
    flag,
    parse_settings,
    run_script,
    setting,
    warn,
)
from visualization import filters, latents
from visualization.figures import SUFFIXES, Cell, as_pillow, save_figure, wrap, write_animation
from visualization.inversion import invert, read_photos

FRAME_TIME = 40  # milliseconds of a walk's frame
SIGN_SIZE = 28  # of the signs of a sum, in pixels


@dataclass(frozen=True, kw_only=True)
class Command(LoadSettings):
    """Settings of every command that writes a file.

    A subclass has an `output`, and a `make(output, generator)` which writes that file.

    Raises:
        SettingsError: a value out of its range.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".png",)  # that its output may have

    scale: int = setting("files", 1, "times to enlarge each image, pixel for pixel", minimum=1)

    def run(self) -> Path:
        """Write the file and return its path.

        Raises:
            SettingsError, CheckpointError: before anything is written.
        """
        output, suffixes = Path(self.output), " or ".join(self.suffixes)
        if output.suffix.lower() not in self.suffixes or output.is_dir():
            raise SettingsError(f"--output {output}: must be a {suffixes} file")
        check_writable(output.parent)
        self.make(output, self.load_generator())
        print(f"Wrote {output}")
        return output

    def read(
        self, generator: Generator, text: str, flag: str = "--seeds"
    ) -> tuple[list[str], Tensor]:
        """Load a list of seeds and files as names and latents (N, Z), see `read_latents`."""
        return latents.read_latents(text, generator.z_dim, generator.z_dist, flag)

    def check_count(self, generator: Generator, count: int) -> None:
        """Refuse more images than a viewer opens in one file.

        Raises:
            SettingsError: saying what to do.
        """
        height, width = (side * self.scale for side in generator.image_size)
        if count * height * width > Image.MAX_IMAGE_PIXELS:
            raise SettingsError(
                f"{count:,} images of {height}x{width} pixels are too many for one file: ask for "
                "fewer or smaller ones"
            )

    def generate(self, generator: Generator, z: Tensor) -> np.ndarray:
        """Generate the images (N, H, W, C) uint8 of latents z (N, Z), `scale` times their size.

        Raises:
            SettingsError: they are too many, see `check_count`.
        """
        self.check_count(generator, len(z))
        return self.enlarge(generate_images(generator, z))

    def enlarge(self, images: np.ndarray) -> np.ndarray:
        """Return images (N, H, W, C) at `scale` times their size."""
        return images.repeat(self.scale, axis=1).repeat(self.scale, axis=2)

    def line(self) -> str:
        """Return the command line that makes the same images again."""
        words = ["python", "explore.py", type(self).__name__.lower()]
        for field in fields(self):
            value = getattr(self, field.name)
            is_shipped = field.name == "load_path" and value == str(SHIPPED)
            if value is None or value is False or is_shipped or field.name in ("output", "device"):
                continue
            if not field.metadata["positional"]:
                words.append(flag(field))
            if value is not True:
                words += map(str, value if isinstance(value, list) else [value])
        return shlex.join(words)

    def write(self, output: Path, rows: Iterable[Sequence[Cell]]) -> None:
        """Save a figure of cells, see `lay_out`."""
        save_figure(output, list(rows), self.line())


def generate_images(generator: Generator, z: Tensor) -> np.ndarray:
    """Generate the images (N, H, W, C) uint8 of latents z (N, Z), with a progress bar."""
    batches = tqdm(z.split(GENERATE_BATCH), desc="Generating", disable=None, leave=False)
    return np.concatenate([to_image(generate(generator, rows)) for rows in batches])


@dataclass(frozen=True, kw_only=True)
class Pick(Command):
    """Plot the images of many seeds, each with its number, to choose from.

    All may be moved along the directions that change the generator's first layer most.
    """

    seeds: str = setting("images", "0-99", "which, such as 0-63,100")
    move: str | None = setting(
        "images", None, "how far along which, such as 1:2.5,3:-4; a latent of 100 dimensions "
        "lies at 10, and stays there", shown="none",
    )  # fmt: skip
    output: str = setting("files", "samples/pick.png", "the PNG to write")

    def make(self, output: Path, generator: Generator) -> None:
        """Save the figure, as square as the number of images allows."""
        names, z = self.read(generator, self.seeds)
        if self.move is not None:
            z = latents.turn(z, latents.read_displacement(generator, self.move), 2)[:, 1]
        cells = list(map(Cell, self.generate(generator, z), names))
        self.write(output, wrap(cells, columns=math.ceil(math.sqrt(len(cells)))))


@dataclass(frozen=True, kw_only=True)
class Walk(Command):
    """Interpolate from latent to latent: an animation, or a strip with a row a leg, as figure 4."""

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
        """Save the animation, of 25 frames a second, or the strip.

        A row of the strip begins with one latent of the list and ends with the next.
        """
        names, z = self.read(generator, self.seeds)
        if len(z) < 2:
            raise SettingsError(f"--seeds {self.seeds}: a walk takes two or more")
        strip = output.suffix.lower() == ".png"
        frames = self.frames or (9 if strip else 30)
        self.check_count(generator, len(z) * frames)
        images = self.generate(generator, latents.walk(z, frames, self.path, self.loop))
        if strip:
            cells = list(map(Cell, images))
            cells[::frames] = map(Cell, images[::frames], names)
            cells += cells[:1] * self.loop
            legs = range(0, len(cells) - 1, frames)
            self.write(output, [cells[i : i + frames + 1] for i in legs])
        else:
            write_animation(output, list(map(as_pillow, images)), [FRAME_TIME] * len(images))


@dataclass(frozen=True, kw_only=True)
class Arithmetic(Command):
    """Add and subtract concepts, each the mean of some latents, as figure 7.

    In the middle of the last block is the result, and around it neighbours with noise of 0.25. The
    means and the result are generated at the norm that a latent of training has.
    """

    expression: str = setting(
        "images", REQUIRED, 'such as "3,17,22 - 4,9,11 + 5,6,8", a space before each sign',
        positional=True,
    )  # fmt: skip
    output: str = setting("files", "samples/arithmetic.png", "the PNG to write")

    def make(self, output: Path, generator: Generator) -> None:
        """Save the figure: a column a concept with its mean at the foot, and the result."""
        signs, lists = zip(*latents.read_terms(self.expression), strict=True)
        where = "expression, a space before each sign:"
        names, concepts = zip(*(self.read(generator, text, where) for text in lists), strict=True)
        means = torch.stack([z.mean(0) for z in concepts])
        result = latents.rescale(torch.tensor(signs, dtype=means.dtype) @ means, generator.z_dist)
        around = latents.neighbours(result)
        means = latents.rescale(means, generator.z_dist)
        z = torch.cat([*concepts, means, around[:4], result[None], around[4:]])
        images = iter(self.generate(generator, z))

        # Signs and concepts take two columns each, the block three, "=" one and nothing one.
        rows = max(map(len, names))  # of exemplars; the means are beneath, with the result
        cells = [[Cell()] * (2 * len(signs) + 4) for _ in range(rows + 2)]
        for column, labels in enumerate(names):
            for row, label in enumerate(labels, rows - len(labels)):
                cells[row][2 * column + 1] = Cell(next(images), label)
        for column, sign in enumerate(signs):
            text = "-" if sign < 0 else "+" * (column > 0)
            cells[rows][2 * column] = Cell(None, text, SIGN_SIZE)
            cells[rows][2 * column + 1] = Cell(next(images), "mean")
        cells[rows][-4] = Cell(None, "=", SIGN_SIZE)
        for i, image in enumerate(images):
            cells[rows - 1 + i // 3][i % 3 - 3] = Cell(image, "result" * (i == 4))
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
        """Save the figure, a row a latent."""
        _, start = self.read(generator, self.from_, "--from")
        _, end = self.read(generator, self.to, "--to")
        names, z = self.read(generator, self.seeds)
        self.check_count(generator, len(z) * self.steps)
        moved = latents.turn(z, end.mean(0) - start.mean(0), self.steps)
        images = iter(self.generate(generator, moved.flatten(0, 1)))
        cells = [[Cell(), *(Cell(None, f"{t:.2g}") for t in torch.linspace(-1, 1, self.steps))]]
        for name in names:
            cells.append([Cell(None, name), *map(Cell, islice(images, self.steps))])
        self.write(output, cells)


@dataclass(frozen=True, kw_only=True)
class Invert(Command):
    """Find the latents whose images come nearest to photos, and save them for other commands.

    The figure has the photos as the network sees them, and beneath each the image of its latent.
    The latents are rows of the .npy file beside it, which may stand wherever seeds do.
    """

    photos: list[str] = setting(  # noqa: RUF009
        "images", REQUIRED, "files of images", positional=True
    )
    starts: int = setting("search", 4, "latents that are improved; the best wins", minimum=1)
    steps: int = setting("search", 250, "steps to improve them", minimum=1)
    seed: int = setting("search", 0, "of the latents to start with", minimum=0, below=2**63)
    output: str = setting("files", "samples/invert.png", "the PNG; the .npy lies beside it")

    def make(self, output: Path, generator: Generator) -> None:
        """Search, and save the latents (N, Z) float32 and the figure."""
        if output.exists() and any(output.samefile(photo) for photo in self.photos):
            raise SettingsError(f"--output {output}: is one of the photos")
        self.check_count(generator, 2 * len(self.photos))
        photos = read_photos(self.photos, generator.image_size, generator.channels)
        try:
            network = self.load_discriminator(generator)
        except CheckpointError as error:
            warn(f"{error}; photos are compared by their pixels alone")
            network = None
        z = invert(generator, to_tensor(photos), network, self.starts, self.steps, self.seed)
        found = to_image(generate(generator, z))
        for name, photo, image in zip(self.photos, photos, found, strict=True):
            difference = np.square(photo.astype(float) - image).mean() ** 0.5
            print(f"{printable(name)}: {difference:.1f} of 255 levels from its latent's image")

        file = output.with_suffix(".npy")
        latents.save_latents(file, z)
        print(f"Wrote {file}")
        names = (f"{file.name}:{i}" for i in range(len(z)))
        above = list(map(Cell, self.enlarge(photos)))
        below = list(map(Cell, self.enlarge(found), names))
        self.write(output, wrap(above, below))


@dataclass(frozen=True, kw_only=True)
class Features(Command):
    """Plot what excites the filters of the discriminator's last convolution, as figure 5.

    For each filter, the images that excite it most, generated from seeds or of a data set; beneath
    them, by guided backpropagation, what in them does. On the left, the same for the filters of an
    untrained discriminator.
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
        """Save the figure, two rows a filter."""
        trained = self.load_discriminator(generator)
        self.check_count(generator, 4 * self.filters * self.shown)
        if self.data is None:
            names, z = self.read(generator, self.seeds or "0-511")
            images = generate_images(generator, z)
        else:
            size, folders = generator.image_size, (self.download_dir, self.cache_dir)
            images = load(self.data, size, generator.channels, *folders)
            names = [""] * len(images)

        random = untrained(trained, self.seed)
        recalibrate(random, filters.in_batches(images, random))
        blocks = []
        for title, network in (("random", random), ("trained", trained)):
            try:
                found = filters.strongest(network, images, self.filters, self.shown)
            except ValueError as error:
                raise SettingsError(f"--filters {self.filters}: {error}") from None
            block = [[Cell(None, title)] + [Cell()] * (found.shape[1] - 1)]
            for i, rows in enumerate(found):
                seen = filters.as_image(
                    filters.guided_gradient(network, to_tensor(images[rows]), i)
                )
                labels = (names[row] for row in rows)
                block.append(list(map(Cell, self.enlarge(images[rows]), labels)))
                block.append(list(map(Cell, self.enlarge(seen))))
            blocks.append(block)
        self.write(output, ([*left, Cell(), *right] for left, right in zip(*blocks, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Dropout(Command):
    """Find the filters behind what boxes mark, and generate without them, as figure 6.

    A logistic regression tells the places of a layer inside the boxes from others, and the filters
    to which it gives positive weights are dropped. The upper block has the marked images, with
    what is outside of their boxes dimmed, and the lower one others; beneath each, without them.

    The paper has its "second highest convolution layer", of which it drops 200 filters. Here that
    is the second from z: layers nearer to the image can't spare half of theirs.
    """

    boxes: str = setting(
        "images", REQUIRED, "seed:left,top,right,bottom in pixels: 3:10,12,30,28; 17,22:8,9,26,27"
    )
    seeds: str = setting("images", "0-7", "other images to generate without them")
    layer: int | None = setting(
        "filters", None, "the hidden layer, of which 1 comes first after z", shown="2", minimum=1
    )
    seed: int = setting("filters", 0, "of the places outside", minimum=0, below=2**63)
    output: str = setting("files", "samples/dropout.png", "the PNG to write")

    def make(self, output: Path, generator: Generator) -> None:
        """Save the figure: whole images, and beneath each the same without the filters."""
        layers = len(filters.activations_of(generator))
        layer = min(2, layers) if self.layer is None else self.layer
        if layer > layers:
            raise SettingsError(f"--layer {layer}: the last hidden layer is {layers}")

        # Gather the boxes of each latent.
        marks: dict[tuple[float, ...], tuple[str, list[filters.Box]]] = {}
        for text, box in filters.read_boxes(self.boxes, generator.image_size):
            for name, z in zip(*self.read(generator, text, "--boxes"), strict=True):
                marks.setdefault(tuple(z.tolist()), (name, []))[1].append(box)
        z, (names, boxes) = torch.tensor(list(marks)), zip(*marks.values(), strict=True)
        marked = filters.mark(boxes, generator.image_size)
        other_names, others = self.read(generator, self.seeds)
        self.check_count(generator, 3 * len(z) + 2 * len(others))

        # Drop the filters that tell what is inside.
        try:
            maps = filters.maps_of(generator, z, layer)
            dropped = filters.find_filters(maps, marked, self.seed) > 0
        except ValueError as error:
            raise SettingsError(f"--boxes {self.boxes}: {error}") from None
        print(f"Layer {layer} of {layers}: dropped {dropped.sum()} of {len(dropped)} filters")
        lacking = filters.without(generator, layer, dropped)

        def compare(z: Tensor, names: Iterable[str]) -> list[list[Cell]]:
            whole = map(Cell, self.generate(generator, z), names)
            return [list(whole), list(map(Cell, self.generate(lacking, z)))]

        shown = self.enlarge(filters.dim(to_image(generate(generator, z)), marked))
        upper = wrap(list(map(Cell, shown)), *compare(z, names))
        self.write(output, upper + wrap(*compare(others, other_names)))


@dataclass(frozen=True, kw_only=True)
class Serve(LoadSettings):
    """Open a page in the browser to look around: seeds and directions, arithmetic, walks.

    It needs Gradio, and shows the command that makes each image. Whoever reaches it may name
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

        def make_file(name: str, output: Path, **asked: Any) -> str:
            command = COMMANDS[name](**shared, **asked)
            command.make(output, generator)
            return command.line()

        serve(make_file, generator, self.host, self.port, self.open)


COMMANDS = {
    "pick": Pick, "walk": Walk, "arithmetic": Arithmetic, "turn": Turn,
    "invert": Invert, "features": Features, "dropout": Dropout, "serve": Serve,
}  # fmt: skip

if __name__ == "__main__":
    run_script(lambda: parse_settings(COMMANDS, __doc__).run())
