"""Speed of writing images, a PNG each, against a loop over torchvision's save_image.

    python -m benchmarks.generation

The first table writes images that are ready, each side's in the form in which it takes them:
uint8 images for ours, float tensors for save_image. The second draws them too, with an untrained
generator: ours from reading its checkpoint on, the loop in batches of 64.

All files stay in a temporary folder until the end, 2.5 GB by default: for some minutes after many
files were deleted, ext4 takes up to ten times as long to make new ones.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import save_image

from benchmarks.common import in_turn, machine, table
from dataset import to_image, to_tensor
from generate import Request, generate_images, write_files
from models import Generator
from serialization import checkpoint
from utils import pick_device

BATCH = 64
DISTINCT = 16 * BATCH  # images made up, written over and over under other names
GRAIN = 0.07  # makes a file as large as one of a 64x64 photo of a cat


def make_up(size: int) -> np.ndarray:
    """Make up images (DISTINCT, size, size, 3) uint8, smooth but for some grain."""
    torch.manual_seed(0)
    coarse = torch.rand(DISTINCT, 3, 8, 8) * 2 - 1
    smooth = F.interpolate(coarse, (size, size), mode="bicubic")
    return to_image(smooth + GRAIN * torch.randn_like(smooth))


def save_each(folder: Path, seeds: range, x: Tensor) -> None:
    """Save images (N, 3, H, W) in [-1, 1] one after another."""
    for seed, image in zip(seeds, x, strict=True):
        save_image(image, folder / f"{seed}.png", normalize=True, value_range=(-1, 1))


def in_new_folder(write: Callable[[Path], object], parent: Path) -> None:
    """Run `write` on an empty folder in `parent`."""
    parent.mkdir(exist_ok=True)
    write(Path(tempfile.mkdtemp(dir=parent)))


def main(arguments: list[str] | None = None) -> None:
    """Print both tables, and the bytes of a file on average."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=10_000, help="how many in a round")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--image_size", type=int, default=64, help="pixels a side, 8 to 256")
    parser.add_argument("--device", default="auto", help="where images are drawn")
    flags = parser.parse_args(arguments)
    device = pick_device(flags.device)

    count = flags.images
    batches = [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
    images = make_up(flags.image_size)
    tensors = to_tensor(images).contiguous()
    settings = {
        "z_dim": 100, "features": 64, "channels": 3, "max_features": 1024, "norm": "batch",
        "activation": "relu", "z_dist": "normal",
    }  # fmt: skip
    generator = Generator(**settings, image_size=flags.image_size).eval().to(device)

    def save_ready(folder: Path) -> None:
        for seeds in batches:
            save_each(folder, seeds, tensors[np.array(seeds) % DISTINCT])

    def write_ready(folder: Path) -> None:
        drawn = ((seeds, images[np.array(seeds) % DISTINCT]) for seeds in batches)
        assert sum(write_files(folder, drawn)) == count

    @torch.no_grad()
    def draw_and_save(folder: Path) -> None:
        for seeds in batches:
            z = torch.randn(len(seeds), settings["z_dim"], 1, 1, device=device)
            save_each(folder, seeds, generator(z).cpu())

    def draw_and_write(folder: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            generate_images(
                Request(
                    load_path=str(path),
                    num_output=count,
                    separate=True,
                    output=str(folder),
                    device=flags.device,
                )
            )

    print(machine())
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "fresh.pth")
        config = settings | {"image_size": str(flags.image_size)}
        checkpoint.save(path, {"config": config, "generator": generator.state_dict()})
        for what, theirs, ours in (
            ("ready", save_ready, write_ready),
            ("drawn", draw_and_save, draw_and_write),
        ):
            folders = {"save_image": Path(name, f"{what}, theirs"), "ours": Path(name, what)}
            runs = {
                "save_image": functools.partial(in_new_folder, theirs, folders["save_image"]),
                "ours": functools.partial(in_new_folder, ours, folders["ours"]),
            }
            seconds = in_turn(runs, flags.repeats)
            print(f"\n{count:,} {what} images, {flags.image_size}x{flags.image_size}\n")
            print(table(seconds, count))
            for key, folder in folders.items():
                mean = statistics.mean(path.stat().st_size for path in folder.rglob("*.png"))
                print(f"{key}: {mean:,.0f} bytes a file")


if __name__ == "__main__":
    main()
