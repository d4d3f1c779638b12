"""Input speed: images a second into the step, against ImageFolder and a DataLoader.

    python -m benchmarks.input_pipeline                         on images made up for it
    python -m benchmarks.input_pipeline --data path/to/faces    on a flat folder of one's own

All rows deliver shuffled batches of 64x64, second epoch on. The first is the textbook's way:
2 workers decode, resize and convert every image in every epoch, to floats in [-1, 1]. Our step
takes bytes, and begins by converting them; the last row converts too.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import in_turn, machine, table, write_images
from benchmarks.throughput import SIZE, textbook_batches
from dataset import load
from train import Config
from training.inputs import Inputs
from utils import pick_device


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and how long each takes from the first call to the first batch."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="a flat folder of images (default: made up)")
    parser.add_argument("--images", type=int, default=4096, help="how many to make up")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of one epoch each")
    parser.add_argument("--device", default="auto")
    flags = parser.parse_args(arguments)
    device = pick_device(flags.device)

    print(machine() + "\n")
    with tempfile.TemporaryDirectory() as name:
        folder, cache_dir = Path(name, "classes"), str(Path(name, "cache"))
        folder.mkdir()
        if flags.data:
            (folder / "all").symlink_to(Path(flags.data).resolve())
        else:
            write_images(folder / "all", flags.images)

        def ours(mirror: bool = False) -> Iterator[Tensor]:
            images = load(str(folder), (SIZE, SIZE), 3, cache_dir=cache_dir)
            inputs = Inputs(Config(mirror=mirror), images, flags.batch_size, slice(None), device)
            return (inputs.real(x["real"], x.get("flip")) for x in inputs.steps(0))

        def theirs() -> Iterator[Tensor]:
            return (x.to(device) for x in textbook_batches(folder, flags.batch_size))

        streams = {}
        for label, start in (
            ("ImageFolder, DataLoader(2)", theirs),
            ("ours, first start", ours),
            ("ours", ours),
            ("ours, flipped at random", functools.partial(ours, mirror=True)),
        ):
            began = time.perf_counter()
            stream = start()
            next(stream)
            print(f"{label}: first batch after {time.perf_counter() - began:.2f} s")
            streams[label] = stream
        del streams["ours, first start"]
        steps = len(load(str(folder), (SIZE, SIZE), 3, cache_dir=cache_dir)) // flags.batch_size

        def epoch(stream: Iterator[Tensor]) -> None:
            for _ in itertools.islice(stream, steps):
                pass
            if device.type == "cuda":
                torch.cuda.synchronize()

        epochs = {name: functools.partial(epoch, stream) for name, stream in streams.items()}
        in_turn(epochs, 1)
        print("\n" + table(in_turn(epochs, flags.repeats), steps * flags.batch_size))


if __name__ == "__main__":
    main()
