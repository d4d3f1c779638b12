"""Scaling: more images, and more ranks.

    python -m benchmarks.scaling                            1k to 1M images, then 1 and 2 ranks
    python -m benchmarks.scaling --counts 1000 --ranks 1    a part of it

The images are made up: up to 10,000 JPEGs of 64x64, under many names each where more are asked
for. Every measurement is a process of its own. Memory is RssAnon, the most that it ever had: what
the process holds by itself, without the pages of mapped files, which cost nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import machine, write_images
from benchmarks.throughput import SIZE, our_step
from dataset import load
from train import Config
from training.acceleration import half_precision
from utils import pick_device

FILES = 10_000  # made, and then linked to: a file system allows tens of thousands of names a file
BATCH = 128


def main(arguments: list[str] | None = None) -> None:
    """Print a table for the counts and one for the ranks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--counts", type=int, nargs="*", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="trained in each process")
    parser.add_argument("--repeats", type=int, default=3, help="later starts of each count")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", help="for images and caches (default: a temporary one)")
    parser.add_argument("--measure", metavar="DATA", help="what a process of this benchmark does")
    flags = parser.parse_args(arguments)
    if flags.measure:
        print(json.dumps(measure(flags.measure, flags.features, flags.steps, flags.device)))
        return
    common = ["--features", str(flags.features), "--steps", str(flags.steps)]
    common += ["--device", flags.device]
    print(machine() + "\n")
    with tempfile.TemporaryDirectory(dir=flags.folder) as name:
        folder = Path(name)
        if flags.counts:
            compare_counts(folder, flags.counts, flags.repeats, common)
        if flags.ranks:
            available = torch.cuda.device_count() or max(flags.ranks)
            compare_ranks(folder, [n for n in flags.ranks if n <= available], common)


def compare_counts(folder: Path, counts: list[int], repeats: int, common: list[str]) -> None:
    """Print what a first and a later start cost with each count of images."""
    made = min(FILES, max(counts))
    write_images(folder / "made", made, (SIZE, SIZE))
    command = [sys.executable, "-m", "benchmarks.scaling", *common, "--measure"]
    first, later = {}, {count: [] for count in counts}
    for count in counts:
        link_images(folder / "made", made, folder / str(count), count)
        first[count] = run([*command, str(folder / str(count))], folder)
    for _, count in itertools.product(range(repeats), counts):
        later[count].append(run([*command, str(folder / str(count))], folder))

    print(
        "| images | first batch after: first start | later | memory: first start | later |",
        end="",
    )
    print(" input, µs an image | training, ms an image | ratio to the first row |")
    print("|---|---|---|---|---|---|---|---|")
    for count in counts:
        medians = {
            key: statistics.median(each[key] for each in later[count]) for key in first[count]
        }
        ratios = [
            own["train"] / base["train"]
            for own, base in zip(later[count], later[counts[0]], strict=True)
        ]
        print(
            f"| {count:,} | {first[count]['start']:.2f} s | {medians['start']:.2f} s "
            f"| {first[count]['memory']:,.0f} MB | {medians['memory']:,.0f} MB "
            f"| {medians['input'] * 1e6:.1f} | {medians['train'] * 1e3:.3f} "
            f"| {statistics.median(ratios):.3f} |"
        )
    print()


def link_images(made: Path, count_made: int, folder: Path, count: int) -> None:
    """Return `count` images names in `folder`, a thousand a subfolder."""
    names = sorted(os.listdir(made))
    for i in tqdm(range(count), desc="Naming images", disable=None, leave=False):
        if i % 1000 == 0:
            subfolder = folder / f"{i // 1000:04d}"
            subfolder.mkdir(parents=True)
        os.link(made / names[i % count_made], subfolder / f"{i:07d}.jpg")


def run(command: list[str], folder: Path) -> dict[str, float]:
    """Run a measuring process in `folder`, with our modules on its path, and read its figures."""
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True,
        timeout=3600,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def measure(data: str, features: int, steps: int, device_name: str) -> dict[str, float]:
    """Return seconds to the first batch, MB of memory, and seconds an image: read, and trained on.

    Reading is timed over at least 1,000 batches, of which each image may be in several.
    """
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.02):
            status = Path("/proc/self/status").read_text()  # of Linux
            most = max(most, int(status.split("RssAnon:")[1].split()[0]))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    device = pick_device(device_name)
    began = time.perf_counter()
    config = Config(
        channels=3, image_size=SIZE, features=features, batch_size=BATCH,
        precision=half_precision(device) or "fp32",
    )  # fmt: skip
    step, inputs = our_step(config, load(data, (SIZE, SIZE)), device)
    stream = inputs.steps(0)
    next(stream)
    figures = {"start": time.perf_counter() - began}

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    began = wait()
    for x in itertools.islice(stream, 1000):
        inputs.real(x["real"])
    figures["input"] = (wait() - began) / (1000 * BATCH)

    for x in itertools.islice(stream, 5):
        step(x)
    began = wait()
    for x in itertools.islice(stream, steps):
        step(x)
    figures["train"] = (wait() - began) / (steps * BATCH)
    done.set()
    watcher.join()
    return figures | {"memory": most / 1024}


def compare_ranks(folder: Path, ranks: list[int], common: list[str]) -> None:
    """Print the images a second that train.py logs, the same global batch on 1 or more ranks."""
    train = Path(__file__).resolve().parent.parent / "train.py"
    images = write_images(folder / "images", 4 * BATCH, (SIZE, SIZE))
    print("| ranks | images/s | ratio |\n|---|---|---|")
    speeds: list[float] = []
    for count in ranks:
        launch = ["torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        command = [sys.executable, "-m", *launch, str(train), *common, "--data", str(images)]
        command += ["--name", f"on_{count}", "--log_every", "1"]
        environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
        subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
        log = (folder / "samples" / f"on_{count}" / "log.jsonl").read_text().splitlines()
        speeds.append(statistics.median(json.loads(line)["images_per_second"] for line in log[1:]))
        print(f"| {count} | {speeds[-1]:,.0f} | {speeds[-1] / speeds[0]:.2f} |")


if __name__ == "__main__":
    main()
