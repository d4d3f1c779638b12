"""Return every script files that are damaged, no checkpoint, hostile or too big to be true.

    python tests/stress/damage.py --flips 200

Each must be refused in one line that names it, with status 2 and nothing written, under 1 GB, and
nothing in it may be run. A flipped bit must be noticed, or leave all that is read as it was.
"""

from __future__ import annotations

import argparse
import builtins
import functools
import itertools
import os
import pickle
import random
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from harness import (
    GIGABYTE,
    RUN,
    checkpoint,
    command,
    conclude,
    flat,
    measured,
    run,
    write_images,
)
from tqdm import tqdm

SCRIPTS = {
    "train.py": ["--name", "again", "--steps", "9", "--resume"],
    "generate.py": ["--output", "drawn.png", "--load_path"],
}
BROKEN = ("missed", "not refused", "written", "executed", "over 1 GB")


class Payload:
    """What calls `function` when it is unpickled without care."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call


def payloads(proof: Path) -> dict[str, Payload]:
    """Return objects that make the file `proof` when they are unpickled without care."""
    return {
        "os.system": Payload(os.system, f"touch '{proof}'"),
        "exec": Payload(builtins.exec, f"open({str(proof)!r}, 'w')"),
        "eval": Payload(builtins.eval, f"open({str(proof)!r}, 'w')"),
        "open": Payload(builtins.open, str(proof), "w"),
        "partial": Payload(functools.partial(os.mkdir, str(proof))),
    }


def no_checkpoints(folder: Path, whole: bytes) -> list[Path]:
    """Make what a user may take for a checkpoint, and is none."""
    (folder / "empty.pth").write_bytes(b"")
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    torch.save({"model": torch.nn.Linear(3, 4).state_dict()}, folder / "another.pth")
    (folder / "folder.pth").mkdir()
    names = ("missing", "empty", "cut", "text", "another", "folder")
    return [folder / f"{name}.pth" for name in names]


def oversized(folder: Path, contents: dict) -> list[Path]:
    """Make small files that claim gigabytes: by a setting, a shape of one number, by inflation."""
    config, weights = contents["config"], contents["generator"]
    wide = {"features": 1 << 17, "max_features": 1 << 17}
    one = torch.zeros(1)
    weights = weights | {"main.0.weight": one.expand(100, 1 << 17, 4, 4)}
    for name, changed in {
        "setting": contents | {"config": config | wide},
        "shape": contents | {"config": config | wide, "generator": weights},
    }.items():
        checkpoint.save(folder / f"{name}.pth", changed)
    with (
        zipfile.ZipFile(folder / "inflated.pth", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data/0", "w", force_zip64=True) as member,
    ):
        for _ in range(1 << 12):
            member.write(bytes(1 << 20))
    return [folder / f"{name}.pth" for name in ("setting", "shape", "inflated")]


def refuse(folder: Path, script: str, path: Path, counts: Counter) -> None:
    """Return a file to a script, and count what it does that it should not."""
    before = sorted(folder.rglob("*"))
    words = command(script, *SCRIPTS[script], str(path))
    status, _, said, peak = measured(folder, words)
    counts["files given"] += 1
    refused = status == 2 and len(said.splitlines()) == 1 and path.name in said
    if not refused:
        print(f"{script} {path.name}: status {status}\n{said}", file=sys.stderr)
    counts["not refused"] += not refused
    counts["written"] += sorted(folder.rglob("*")) != before
    counts["over 1 GB"] += peak > GIGABYTE
    counts["most memory, in MB"] = max(counts["most memory, in MB"], peak >> 20)


def stress(flips: int, every: int = 1, seed: int = 0) -> Counter:
    """Flip so many bits of a checkpoint, one at a time; try all other files; give the counts."""
    counts: Counter = Counter()
    places = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", 20, size=(16, 16))
        status, said = run(folder, command("train.py", *RUN, "--steps", "5"))
        assert status == 0, said
        path = folder / "checkpoints" / "images" / "last.pth"
        whole, contents = path.read_bytes(), checkpoint.load(path)

        flipped = folder / "flipped.pth"
        for _ in tqdm(range(flips), desc="Flipped bits", disable=None):
            place = places.randrange(8 * len(whole))
            data = bytearray(whole)
            data[place // 8] ^= 1 << place % 8
            flipped.write_bytes(data)
            try:
                same = repr(flat(checkpoint.load(flipped))) == repr(flat(contents))
                counts["between members, without effect" if same else "missed"] += 1
            except checkpoint.CheckpointError:
                counts["noticed"] += 1
        flipped.unlink()

        proof = folder.parent / f"{folder.name}-executed"
        hostile = []
        for kind, payload in payloads(proof).items():
            hostile.append(folder / f"{kind}.pth")
            torch.save(contents | {"config": payload}, hostile[-1])
        torch.save(payload, folder / "legacy.pth", _use_new_zipfile_serialization=False)
        (folder / "plain.pth").write_bytes(pickle.dumps(payload))
        hostile += [folder / "legacy.pth", folder / "plain.pth"]
        files = [*no_checkpoints(folder, whole), *oversized(folder, contents), *hostile]
        pairs = list(itertools.product(SCRIPTS, files))[::every]
        for script, path in tqdm(pairs, desc="Files", disable=None):
            refuse(folder, script, path, counts)
            counts["executed"] += proof.exists()
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Print the counts; give 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--flips", type=int, default=200, help="bits to flip")
    parser.add_argument("--every", type=int, default=1, help="try one file and script of so many")
    flags = parser.parse_args(arguments)
    return conclude(stress(flags.flips, flags.every), BROKEN)


if __name__ == "__main__":
    sys.exit(main())
