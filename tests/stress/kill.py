"""Kill a training run at random moments, and look at what it leaves: nothing is ever half a file.

    python tests/stress/kill.py --kills 200

Each run is started and resumed in processes of its own, each killed with SIGKILL after a random
time, about ten to a run. Every checkpoint must then be readable; in the end the run must equal, by
hash, one that was never broken, and have the same log and grids.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from harness import RUN, checkpoint, command, conclude, digest, start, write_images
from tqdm import tqdm

BROKEN = ("failed", "unreadable", "missing", "not equal", "logs or grids not equal",
          "temporaries not swept")  # fmt: skip


def what_is_left(checkpoints: Path, samples: Path) -> tuple[str, list[dict], list[bytes]]:
    """Return what a run that ends should leave, whatever happened to it: hash, log and grids."""
    log = [json.loads(line) for line in (samples / "log.jsonl").read_text().splitlines()]
    for entry in log:
        del entry["images_per_second"]
    grids = [path.read_bytes() for path in sorted(samples.glob("step_*.png"))]
    return digest(checkpoints / "last.pth"), log, grids


def stress(kills: int, steps: int, seed: int = 0) -> Counter:
    """Kill a run until it has all its steps, and begin another, until there were so many kills."""
    counts: Counter = Counter()
    moments = random.Random(seed)
    bar = tqdm(total=kills, desc="Kills", disable=None)
    with tempfile.TemporaryDirectory() as name, bar:
        folder = Path(name)
        write_images(folder / "images", 20, size=(16, 16))

        def places(run: str) -> tuple[Path, Path]:
            return folder / "checkpoints" / run, folder / "samples" / run

        def play(run: str):
            words = command("train.py", *RUN, "--steps", f"{steps}", "--name", run, "--resume")
            return start(folder, words)

        unbroken, began = play("unbroken"), time.monotonic()
        while not (places("unbroken")[0] / "last.pth").exists():
            assert unbroken.poll() is None, unbroken.communicate()
            time.sleep(0.01)
        first = time.monotonic() - began
        assert unbroken.wait() == 0, unbroken.communicate()
        whole = time.monotonic() - began
        expected = what_is_left(*places("unbroken"))

        while counts["kills"] < kills:
            counts["runs"] += 1
            checkpoints, samples = places(f"run{counts['runs']}")
            ended = False
            while not ended:
                process = play(checkpoints.name)
                if counts["kills"] < kills:
                    time.sleep(moments.uniform(0.7 * first, first + (whole - first) / 2))
                    process.kill()
                _, said = process.communicate()
                ended = process.returncode >= 0
                if ended:
                    break
                counts["kills"] += 1
                bar.update()
                counts["temporaries left"] += len(list(checkpoints.glob(".*.tmp")))
                for path in checkpoints.glob("*.pth"):
                    counts["checkpoints read"] += 1
                    try:
                        checkpoint.load(path)
                    except checkpoint.CheckpointError as error:
                        bar.write(str(error))
                        counts["unreadable"] += 1
                if any(checkpoints.glob("epoch_*.pth")) and not (checkpoints / "last.pth").exists():
                    counts["missing"] += 1
            if process.returncode > 0:
                bar.write(said)
                counts["failed"] += 1
                continue
            state, log, grids = what_is_left(checkpoints, samples)
            counts["equal" if state == expected[0] else "not equal"] += 1
            counts["logs or grids not equal"] += (log, grids) != expected[1:]
            for place in (checkpoints, samples):
                counts["temporaries not swept"] += len(list(place.glob(".*.tmp")))
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Print the counts; give 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=400, help="of each run")
    flags = parser.parse_args(arguments)
    return conclude(stress(flags.kills, flags.steps), BROKEN)


if __name__ == "__main__":
    sys.exit(main())
