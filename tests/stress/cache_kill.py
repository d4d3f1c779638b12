"""Kill processes while they decode images into the cache, also two at once.

    python tests/stress/cache_kill.py --kills 50

No half-built cache may ever be taken for whole, no worker process may stay behind, and two that
build the same cache at once must end with one, of the right pixels.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from harness import ROOT, conclude, run, start, write_images
from tqdm import tqdm

IMAGES = 600  # enough for worker processes
BROKEN = ("half a cache", "left behind", "failed", "more than one")


def caches(folder: Path) -> list[Path]:
    """Return what may be taken for a cache, which is all that is not being built."""
    return [path for path in folder.glob("*") if path.suffix != ".building"]


def when_building(folder: Path, process: subprocess.Popen) -> float:
    """Wait until a cache is being built, and give the time."""
    while not any(folder.glob("cache/*.building")) and process.poll() is None:
        time.sleep(0.005)
    return time.monotonic()


def processes_in(folder: Path) -> list[int]:
    """Return the processes that were started in `folder`, and what those have started."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if os.readlink(link) == str(folder):
                found.append(int(link.parent.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def stress(kills: int, seed: int = 0) -> Counter:
    """Kill so many builds, half of them beside another; give the counts."""
    counts: Counter = Counter()
    moments = random.Random(seed)
    bar = tqdm(total=kills, desc="Kills", disable=None)
    with tempfile.TemporaryDirectory() as name, bar:
        folder = Path(name).resolve()
        write_images(folder / "images", IMAGES, size=(320, 320), suffix=".jpg")
        script = (
            f"import sys; sys.path.append({str(ROOT)!r}); import dataset as d; d.load('images')"
        )
        words = [sys.executable, "-c", script]
        first = start(folder, words)
        began = when_building(folder, first)
        assert first.wait() == 0, first.communicate()
        build = time.monotonic() - began
        (made,) = caches(folder / "cache")
        expected = (made / "pixels").read_bytes()

        while counts["kills"] < kills:
            shutil.rmtree(folder / "cache")
            both = [start(folder, words) for _ in range(1 + counts["kills"] % 2)]
            when_building(folder, both[0])
            time.sleep(moments.uniform(0, 0.8) * build)
            both[0].kill()
            counts["kills"] += 1
            bar.update()
            for process in both[1:]:
                counts["beside another"] += 1
                counts["failed"] += process.wait() != 0
            both[0].communicate()
            counts["killed while building"] += any((folder / "cache").glob("*.building"))
            deadline = time.monotonic() + 5
            while processes_in(folder) and time.monotonic() < deadline:
                time.sleep(0.02)
            counts["left behind"] += len(processes_in(folder))
            status, said = run(folder, words)
            if status:
                bar.write(said)
            counts["failed"] += status != 0
            counts["more than one"] += len(caches(folder / "cache")) > 1
            for cache in caches(folder / "cache"):
                counts["half a cache"] += (cache / "pixels").read_bytes() != expected

        shutil.rmtree(folder / "cache")
        both = [start(folder, words) for _ in range(2)]
        counts["failed"] += sum(process.wait() != 0 for process in both)
        counts["more than one"] += len(list((folder / "cache").iterdir())) != 1
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Print the counts; give 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    return conclude(stress(parser.parse_args(arguments).kills), BROKEN)


if __name__ == "__main__":
    sys.exit(main())
