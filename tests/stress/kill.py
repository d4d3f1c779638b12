"""Kill a training run at random moments, and look at what it leaves: nothing is ever half a file.

    python tests/stress/kill.py --kills 200

Each round starts or resumes the same run in a process of its own and kills it with SIGKILL after a
random time. Every checkpoint must then be readable; in the end the killed run must equal, by hash,
one that was never broken. Prints counts; the status is 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import checkpoint  # noqa: E402

STATES = ("generator", "discriminator", "optimizer_g", "optimizer_d")
RUN = ["--data", "pictures", "--image_size", "16", "--features", "8", "--batch_size", "4",
       "--save_every", "1", "--keep", "3", "--device", "cpu"]  # fmt: skip


def digest(path: Path) -> str:
    """Give a hash of both networks and both optimizers of a checkpoint."""
    contents = checkpoint.load(path)
    return hashlib.sha256(repr([flat(contents[name]) for name in STATES]).encode()).hexdigest()


def flat(value: object) -> object:
    """Turn a nest of dictionaries, lists and tensors into plain values."""
    if isinstance(value, dict):
        return {key: flat(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [flat(inner) for inner in value]
    if hasattr(value, "numpy"):
        return value.numpy().tobytes()
    return value


def start(folder: Path, name: str, steps: int, *flags: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), *RUN, "--name", name, "--steps", str(steps)]
    return subprocess.Popen(
        [*command, *flags], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def stress(kills: int, steps: int, seed: int = 0) -> Counter:
    """Kill a run so often, or until it has all its steps, and begin another; give the counts."""
    counts: Counter = Counter()
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(folder / "pictures" / f"{i}.png")
        unbroken = start(folder, "unbroken", steps)
        began = time.monotonic()
        assert unbroken.wait() == 0, unbroken.communicate()
        whole = time.monotonic() - began
        expected = digest(folder / "checkpoints" / "unbroken" / "last.pth")

        bar = tqdm(total=kills, desc="Kills", disable=None)
        while counts["kills"] < kills:
            counts["runs"] += 1
            run = folder / "checkpoints" / f"run{counts['runs']}"
            while True:
                process = start(folder, run.name, steps, "--resume")
                if counts["kills"] < kills:
                    time.sleep(moments.uniform(0.2, 0.9) * whole)
                    process.kill()
                _, said = process.communicate()
                if process.returncode == 0:
                    break
                if process.returncode > 0:
                    counts["failed"] += 1
                    print(said, file=sys.stderr)
                    break
                counts["kills"] += 1
                bar.update()
                counts["temporaries left"] += len(list(run.glob(".*.tmp")))
                for path in run.glob("*.pth"):
                    counts["checkpoints read"] += 1
                    try:
                        checkpoint.load(path)
                    except checkpoint.CheckpointError:
                        counts["unreadable"] += 1
                if list(run.glob("epoch_*.pth")) and not (run / "last.pth").exists():
                    counts["missing"] += 1
            if process.returncode == 0:
                counts["equal" if digest(run / "last.pth") == expected else "not equal"] += 1
                counts["temporaries not swept"] += len(list(run.glob(".*.tmp")))
        bar.close()
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Print the counts; give 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=2000, help="of each run")
    flags = parser.parse_args(arguments)
    counts = stress(flags.kills, flags.steps)
    broken = ("unreadable", "missing", "failed", "not equal", "temporaries not swept")
    for name in ("kills", "runs", "checkpoints read", "temporaries left", "equal", *broken):
        print(f"{name}: {counts[name]}")
    return int(any(counts[name] for name in broken))


if __name__ == "__main__":
    sys.exit(main())
