"""Picture quality: ours against a textbook loop, after as many real images seen by each.

    python -m benchmarks.quality --data path/to/cats --seeds 0 1 2

All are measured every few epochs and at their end, as `train.py --evaluate_every` does, and the
best counts. Runs that are there already are not repeated, and one that was broken off goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import machine
from benchmarks.throughput import Textbook
from models import Generator, init_weights
from train import Config, train
from training.best import Best
from training.inputs import Inputs
from training.setup import load_images
from utils import atomic_write, parse_settings, pick_device

FACES = f"@{Path(__file__).parents[1] / 'settings' / 'faces64.txt'}"
ROWS: dict[str, list[str] | None] = {  # flags of train.py; the textbook has none
    "textbook": None,
    "ours, last weights": ["--ema", "0"],
    "ours, batches of 32, last weights": ["--ema", "0", "--batch_size", "32"],
    "settings/faces64.txt, last weights": [FACES, "--ema", "0"],
    "settings/faces64.txt": [FACES],
    "settings/faces64.txt, --augment": [FACES, "--augment"],
    "settings/faces64.txt, two rates": [
        FACES, "--learning_rate_d", "0.0004", "--learning_rate_g", "0.0001",
    ],
}  # fmt: skip
TEXTBOOK_BATCH = 128


def measure_textbook(config: Config, count: int) -> dict[int, float]:
    """Train the textbook DCGAN on `count` images; give the distances by step."""
    device = pick_device(config.device)
    images = load_images(config)
    best = Best(config, images, device)
    torch.manual_seed(config.seed)
    textbook = Textbook(device, config.features)
    textbook.generator.apply(init_weights)
    textbook.discriminator.apply(init_weights)
    drawing = Generator(100, config.features, 3, 64)
    inputs = Inputs(config, images, TEXTBOOK_BATCH, slice(None), device)
    distances, total = {}, count // TEXTBOOK_BATCH
    every = config.evaluate_every * (len(images) // TEXTBOOK_BATCH)
    stream = itertools.islice(inputs.steps(0), total)
    for step, x in enumerate(tqdm(stream, total=total), 1):
        textbook.step(inputs.real(x["real"]))
        if step % every == 0 or step == total:
            drawing.main.load_state_dict(textbook.generator.state_dict())
            distances[step] = best.measure(drawing.to(device), step, lambda: 0)
    return distances


def measure_ours(config: Config) -> dict[int, float]:
    """Train as `config` says, or go on; give the distances by step."""
    train(config)
    log = Path(config.sample_dir, config.name, "log.jsonl").read_text(encoding="utf-8")
    entries = map(json.loads, log.splitlines())
    return {entry["step"]: entry["frechet"] for entry in entries if "frechet" in entry}


def measure(row: str, seed: int, given: argparse.Namespace) -> dict[int, float]:
    """Return the distances of one run by step, from its file if it is there."""
    number, flags = list(ROWS).index(row), ROWS[row]
    name = f"quality-{number}-seed-{seed}"
    path = Path(given.folder, f"{name}.json")
    if path.exists():
        return {int(step): value for step, value in json.loads(path.read_text()).items()}
    settings = [
        *(flags or []), "--data", given.data, "--seed", str(seed), "--name", name,
        "--features", str(given.features), "--evaluate_every", str(given.every), "--resume",
        "--checkpoint_dir", given.folder, "--sample_dir", given.folder, "--image_size", "64",
        "--device", given.device,
    ]  # fmt: skip
    config = parse_settings(Config, None, settings)
    if flags is None:
        distances = measure_textbook(config, given.images)
    else:
        steps = given.images // config.batch_size
        distances = measure_ours(parse_settings(Config, None, [*settings, "--steps", str(steps)]))
    with atomic_write(path) as file:
        file.write(json.dumps(distances).encode())
    return distances


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, a row for each of `ROWS`, as runs end."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=181_000, help="real ones seen by each")
    parser.add_argument("--every", type=int, default=4, help="epochs between measurements")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", type=int, nargs="+", default=range(len(ROWS)))
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--folder", default="checkpoints/quality", help="of the runs")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(arguments)
    Path(given.folder).mkdir(parents=True, exist_ok=True)
    table = []
    for row in (list(ROWS)[number] for number in given.rows):
        values = []
        for seed in given.seeds:
            distances = measure(row, seed, given)
            step = min(distances, key=distances.get)
            values.append(distances[step])
            print(f"{row}, seed {seed}: {distances[step]:.1f} at step {step}", file=sys.stderr)
        spread = f" ± {statistics.stdev(values):.0f}" if len(values) > 1 else ""
        table.append(f"| {row} | {statistics.mean(values):.0f}{spread} | {len(values)} |")
    print(machine() + f", {given.images:,} images\n\n| | frechet | seeds |\n|---|---|---|")
    print("\n".join(table))


if __name__ == "__main__":
    main()
