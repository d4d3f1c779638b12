"""Measure how good generated images are: their distances from real ones, by a network's features.

    python evaluate.py --load_path checkpoints/cats/last.pth --data path/to/cats
    python evaluate.py --images path/to/generated --data path/to/cats

Each is printed beside its floor, which is that of real images from other real ones: no generator
is expected to do better. A file beside the checkpoint keeps all of it, one metric a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from dataset import load
from metrics.distances import FEWEST, compare, nearest
from metrics.features import (
    NETWORKS,
    Drawn,
    as_seen,
    extract,
    load_network,
    real_features,
)
from preprocessing.sources import NAMED_SETS, DataError
from serialization.load import LoadSettings
from utils import (
    REQUIRED,
    SettingsError,
    atomic_write,
    check_writable,
    parse_settings,
    parse_size,
    pick_device,
    random_at,
    run_script,
    setting,
    warn,
    write_json,
)

MOST = 10_000  # images that are compared unless more are asked for
SHOWN, NEIGHBOURS = 8, 6  # rows and neighbours of the sheet
YARDSTICK = 2_000  # real images whose nearest other one is looked for
CAPTION = """\
The {shown} of {count:,} generated images that come nearest to a real one, each with the \
{neighbours} nearest of {real:,}
and their distances. Half of the real ones have another within {half:.3g}, one in a hundred \
within {rare:.3g}.
A screening tool: the features are those of {network},
which can miss a copy that a person sees, and take for one what is none."""


@dataclass(frozen=True, kw_only=True)
class Request(LoadSettings):
    """Which images to compare, and by which features.

    Raises:
        SettingsError, DataError: a value out of its range, or settings that exclude each other.
    """

    load_path: str | None = setting(
        "images", None, "the checkpoint whose generator draws, a .pth file", shown="none"
    )
    images: str | None = setting(
        "images", None, "or generated images, a folder or a .zip", shown="none"
    )
    data: str = setting(
        "images", REQUIRED, "the real ones, a folder, a .zip, or a set: " + ", ".join(NAMED_SETS)
    )
    image_size: str | None = setting(
        "images", None, "of --images or another program's checkpoint, in pixels, 64 or 64x96",
        shown="64, or the likeliest", size=True,
    )  # fmt: skip
    num_output: int | None = setting(
        "images", None, "how many of each", shown=f"all there are, to {MOST}", minimum=FEWEST
    )
    seed: int = setting(
        "images", 0, "of the first one drawn; the others count up", minimum=0, below=2**62
    )
    download_dir: str = setting("images", "data", "folder of downloaded sets")
    cache_dir: str = setting("images", "cache", "folder of decoded images and their features")

    feature_network: str = setting("metrics", "inception", "whose features", choices=NETWORKS)
    inception_weights: str | None = setting(
        "metrics", None, "its weights, a .pth file", shown="downloaded once"
    )
    neighbours: bool = setting(
        "metrics", False, "look for copies of real images, and draw a sheet of the likest"
    )

    output: str | None = setting(
        "files", None, "the metrics, a .json file; the sheet is the .png beside it",
        shown="beside the checkpoint",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.load_path is None) == (self.images is None):
            raise SettingsError("give one of --load_path, a checkpoint, and --images, a folder")
        if self.images is not None and (self.activation or self.z_dist):
            raise SettingsError("--activation and --z_dist: are for --load_path, a checkpoint")
        if self.feature_network == "discriminator" and self.load_path is None:
            raise SettingsError("--feature_network discriminator: takes a checkpoint, --load_path")
        if self.inception_weights is not None and self.feature_network != "inception":
            raise SettingsError("--inception_weights: is for --feature_network inception alone")
        if self.output is not None and Path(self.output).suffix != ".json":
            raise SettingsError(f"--output {self.output}: must be a .json file")

    def json_path(self) -> Path:
        """Return the file that the metrics go to."""
        if self.output is not None:
            return Path(self.output)
        source = Path(self.images or self.load_path).absolute()
        name = source.stem if source.is_file() else source.name
        return source.with_name(f"{name}.{self.feature_network}.json")


def evaluate(request: Request) -> list[dict[str, Any]]:
    """Compare as asked, print, write, and give what was written, one dictionary a metric.

    Raises:
        SettingsError, DataError, CheckpointError: before anything is written but what is cached.
    """
    output = request.json_path()
    check_writable(output.parent)
    device = pick_device(request.device)
    generator = request.load_generator() if request.load_path else None
    network = load_network(request.feature_network, request.load_path, request.inception_weights)
    network.to(device)
    real, fake, rows = open_images(request, generator)

    # The real ones in an order of their own, so that all seeds and checkpoints meet the same.
    order = random_at(0, "evaluate", 0).permutation(len(real))
    count, half = len(rows), min(len(rows), len(real) // 2)
    needed = len(real) if request.neighbours else max(count, 2 * half)
    folders = request.download_dir, request.cache_dir
    features_real = real_features(network, real, order[:needed], request.data, *folders)
    features_fake = extract(network, fake, rows, "generated images")
    height, width, channels = real.shape[1:]
    print(
        f"{count:,} generated images of {height}x{width} against {count:,} of {len(real):,} real "
        f"ones; floor: {half:,} of those against {half:,} others\n"
        f"network: {network.title}; resize: {network.resize}"
    )
    dimensions = features_real.shape[1]
    if count < dimensions:
        warn(f"{count:,} images are few for {dimensions:,} features: read {network.frechet} "
             "beside its floor, which chance makes large too")  # fmt: skip

    values = compare(features_real[:count], features_fake, request.seed)
    floors = compare(features_real[:half], features_real[half : 2 * half], request.seed)
    about = {
        "generated": count, "real": count, "floor_counts": [half, half],
        "image_size": f"{height}x{width}", "channels": channels,
        "network": network.title, "resize": network.resize, "seed": request.seed,
        "average": not request.no_ema,
        "pictures": request.load_path or request.images, "data": request.data,
    }  # fmt: skip
    names = {"frechet": network.frechet}
    lines = [
        {"metric": names.get(name, name), "value": value, "floor": floors[name], **about}
        for name, value in values.items()
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    if request.neighbours:
        near, which = nearest(features_fake, features_real, NEIGHBOURS)
        usual = nearest(features_real[:YARDSTICK], features_real, 2)[0][:, 1]  # beside itself
        about |= {"real": len(real), "floor_counts": [len(usual), len(real) - 1]}
        line = {"value": near[:, 0].median().item(), "floor": usual.median().item()}
        lines.append({"metric": "nearest", **line, **about})
        likest = near[:, 0].argsort()[:SHOWN]
        caption = CAPTION.format(
            shown=len(likest), count=count, neighbours=NEIGHBOURS, real=len(real),
            half=usual.median(), rare=usual.quantile(0.01), network=network.title,
        )  # fmt: skip
        originals = [real[order[row]] for row in which[likest]]
        draw_sheet(output.with_suffix(".png"), fake[rows[likest]], originals, near[likest], caption)
    write_lines(output, lines)
    print(f"Wrote {output}" + f" and {output.with_suffix('.png').name}" * request.neighbours)
    return lines


def open_images(
    request: Request, generator: nn.Module | None
) -> tuple[np.ndarray, np.ndarray | Drawn, np.ndarray]:
    """Return the real images, the generated ones, and which of those to take: rows, or seeds.

    Raises:
        SettingsError, DataError: there are none, or fewer than asked for.
    """
    folders = request.download_dir, request.cache_dir
    if generator is not None:
        real = load(request.data, generator.image_size, generator.channels, *folders)
        fake, available = Drawn(generator), len(real)
    else:
        size = parse_size(request.image_size or "64")
        try:
            fake = load(request.images, size, None, *folders)
        except DataError as error:
            raise DataError(str(error).replace("--data", "--images", 1)) from error
        real = load(request.data, size, fake.shape[3], *folders)
        available = min(len(real), len(fake))
    if available < 2 * FEWEST:
        flag = "--data" if available == len(real) else "--images"
        raise DataError(
            f"{flag}: {available} images are too few; comparing takes {2 * FEWEST} or more"
        )
    if request.num_output is not None and request.num_output > available:
        raise SettingsError(
            f"--num_output {request.num_output}: there are {available:,} to compare"
        )
    count = request.num_output or min(available, MOST)
    if generator is not None:
        return real, fake, np.arange(request.seed, request.seed + count)
    return real, fake, random_at(request.seed, "evaluate", 0).permutation(len(fake))[:count]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Print each metric beside its floor, and write all there is to say of it, to 6 digits."""
    print(f"{'':12}{'value':>11}{'floor':>12}")
    for line in lines:
        line |= {name: float(f"{line[name]:.6g}") for name in ("value", "floor")}
        print(f"{line['metric']:12}{line['value']:>11.4g}{line['floor']:>12.4g}")
    write_json(path, lines)


def draw_sheet(
    path: Path, drawn: np.ndarray, real: list[np.ndarray], distances: Tensor, caption: str
) -> None:
    """Write a PNG with a row for each of `drawn` (R, H, W, C) uint8: it, and R times K real ones.

    `real` holds R arrays (K, H, W, C), and `distances` (R, K) stand above them.
    """
    rows, columns = len(drawn), 1 + distances.shape[1]
    aspect = drawn.shape[1] / drawn.shape[2]
    figure = Figure(figsize=(1.3 * columns, 1.3 * aspect * rows + 0.3 * rows + 1.2), dpi=100)
    figure.set_layout_engine("constrained")
    figure.suptitle(caption, fontsize=9)
    cells = figure.subplots(rows, columns, squeeze=False)
    for row, line in enumerate(cells):
        shown = as_seen(torch.from_numpy(np.concatenate([drawn[row : row + 1], real[row]])))
        labels = ["generated", *(f"{distance:.3g}" for distance in distances[row])]
        for cell, image, label in zip(line, shown.numpy(), labels, strict=True):
            cell.imshow(image, interpolation="nearest")
            cell.set_title(label, fontsize=8)
            cell.axis("off")
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


if __name__ == "__main__":
    run_script(lambda: evaluate(parse_settings(Request, __doc__)))
