"""Fill the disk under a training run, at five sizes of it.

    python tests/stress/full_disk.py

A run writes to a small file system of its own (where mounting is not permitted, under a bound on
the size of a file). Training must go on and say what it could not write; every file that is there
must be whole; and with room again, --resume must end equal, by hash, to a run that always had it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from harness import RUN, checkpoint, command, conclude, digest, run, write_images
from PIL import Image
from tqdm import tqdm

SIZES = (0.4, 1.4, 2.4, 3.4, 4.4)  # of a checkpoint, five of which a run would have at its peak
STEPS = "40"
BROKEN = ("not said", "half a file", "temporaries left", "failed with room", "not equal")


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Mount a file system of so many bytes on `folder`; gives whether that is permitted."""
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    mounted = subprocess.run(words, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def enlarge(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)


def count_halves(folder: Path) -> int:
    """Count the checkpoints and images in `folder` that are not whole."""
    halves = 0
    for path in folder.rglob("*.*"):
        try:
            if path.suffix == ".pth":
                checkpoint.load(path)
            elif path.suffix in (".png", ".webp"):
                with Image.open(path) as image:
                    image.load()
        except (checkpoint.CheckpointError, OSError) as error:
            print(error, file=sys.stderr)
            halves += 1
    return halves


def stress(sizes: tuple[float, ...] = SIZES) -> Counter:
    """Train on disks of so many checkpoints' size, then make room and go on; give the counts."""
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", 20, size=(16, 16))
        wide = command("train.py", *RUN, "--features", "32", "--steps", STEPS)
        assert run(folder, wide)[0] == 0
        whole = folder / "checkpoints" / "images" / "last.pth"
        expected = digest(whole)

        for size in tqdm(sizes, desc="Disks", disable=None):
            disk = folder / f"disk{size}"
            disk.mkdir()
            length = whole.stat().st_size
            words = [*wide, "--checkpoint_dir", f"{disk}/c", "--sample_dir", f"{disk}/s"]
            with small_disk(disk, int(size * length)) as mounted:
                counts["mounted" if mounted else "bounds on a file"] += 1
                bound = int(min(size, 0.9) * length)  # of one file, so that no checkpoint fits
                limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (bound,) * 2)
                status, said = run(folder, words, preexec_fn=None if mounted else limit)
                full = "No space left on device" in said or "File too large" in said
                counts["warnings"] += said.count("training goes on")
                counts["ended with status 2"] += status == 2
                counts["not said"] += not full
                counts["half a file"] += count_halves(disk)
                counts["temporaries left"] += len(list(disk.rglob("*.tmp")))
                if mounted:
                    enlarge(disk)
                kept = (disk / "c/images/last.pth").exists()
                counts["checkpoint kept"] += kept
                status, said = run(folder, [*words, "--resume"])
                if status:
                    print(said, file=sys.stderr)
                    counts["failed with room"] += 1
                    continue
                same = digest(disk / "c/images/last.pth") == expected
                counts["equal" if same else "not equal"] += 1
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Print the counts; give 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="in checkpoints")
    return conclude(stress(tuple(parser.parse_args(arguments).sizes)), BROKEN)


if __name__ == "__main__":
    sys.exit(main())
