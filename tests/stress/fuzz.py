"""Feed broken files to what reads checkpoints, archives and images: each is read or refused.

    python tests/stress/fuzz.py --cases 100000

Real files are changed as hypothesis says: stretches of bytes are replaced, cut out, put in or
taken from another file; and, behind checksums that are right, members, pickle opcodes, settings
and weights. What is read must be of use, and what is refused has one line that says why. Another
process reads them, so that it may hang or die. A file that breaks a promise is kept.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import resource
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import torch
from harness import conclude
from hypothesis import strategies as st
from mutations import archive_case, checkpoint_case, image_case, read_checkpoint, read_images
from tqdm import tqdm

EXCEPTION, *FATAL = BROKEN = ("exceptions", "crashes", "hangs", "over memory")
HANGS = 10.0  # seconds
MEMORY = 10**9  # bytes that no file may claim
BLOCK = 500  # cases that hypothesis makes at a time
CASE = "case/case.png"  # where a file is written to be read, whatever it is


TARGETS = {  # how hypothesis makes a file, and how it is read, which tells whether it was accepted
    "checkpoint": (checkpoint_case, read_checkpoint),
    "archive": (archive_case, lambda path: read_images(path, path)),
    "image": (image_case, lambda path: read_images(path.parent, path)),
}


def peak() -> int:
    """Return the most bytes that this process has ever had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def outcome(read: Callable[[Path], bool], path: Path, before: int) -> tuple[str, str, str]:
    """Read one file; give what to count it as, and if that is BROKEN where and how."""
    try:
        how = ("accepted" if read(path) else "refused", "", "")
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
        how = (EXCEPTION, where, str(error)[:500])
    grown = peak() - before
    return ("over memory", "memory", f"{grown / 1e9:.1f} GB") if grown > MEMORY else how


def work(pipe, folder: Path, seed: int, left: dict[str, int]) -> None:
    """Make and read so many files of each target, and send the outcome of each."""
    os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hypothesis.configuration.set_hypothesis_home_dir(folder)
    resource.setrlimit(resource.RLIMIT_AS, (8 * MEMORY, 8 * MEMORY))
    pipe.send("ready")
    before = peak()
    for target, (make, read) in TARGETS.items():

        def read_one(file: bytes, target=target, read=read) -> None:
            (folder / CASE).write_bytes(file)
            left[target] -= 1
            how = outcome(read, folder / CASE, before)
            pipe.send((*how, file if how[0] in BROKEN else b""))

        while left[target]:
            repeat(read_one, make, min(left[target], BLOCK), f"{seed} {target} {left[target]}")


def repeat(call: Callable[[bytes], None], make: Callable, count: int, seed: str) -> None:
    """Call with so many files that hypothesis makes."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(st.composite(make)())
    def given(file: bytes) -> None:
        call(file)

    given()


def outcomes(folder: Path, seed: int, left: dict[str, int]) -> Iterator[tuple]:
    """Yield the target of each file and its outcome, whatever becomes of the process."""
    context = multiprocessing.get_context("spawn")
    while any(left.values()):
        pipe, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(theirs, folder, seed, left), daemon=True)
        process.start()
        theirs.close()
        pipe.recv()
        how = ("",)
        while how[0] not in FATAL and any(left.values()):
            target = next(name for name in left if left[name])
            try:
                how = pipe.recv() if pipe.poll(HANGS) else ("hangs", "hang", "")
            except EOFError:
                process.join()
                said = (folder / "stderr").read_text(errors="replace")
                if process.exitcode == 1:  # by an exception of this program
                    raise RuntimeError(said[-1000:]) from None
                said = said.rpartition("Fatal Python error")[2][:1000]
                how = ("crashes", f"crash with status {process.exitcode}", said)
            left[target] -= 1
            yield target, *(how if len(how) == 4 else (*how, (folder / CASE).read_bytes()))
        if how[0] not in FATAL:
            process.join(HANGS)
        process.kill()
        process.join()


def stress(cases: int, seed: int, keep: Path) -> Counter:
    """Return each reader its share of the cases, and count how they fare."""
    counts: Counter = Counter()
    failures: Counter = Counter()
    left = dict.fromkeys(TARGETS, cases // len(TARGETS))
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # where a file is soon written
    with tempfile.TemporaryDirectory(dir=memory) as name:
        Path(name, CASE).parent.mkdir()
        results = outcomes(Path(name), seed, left)
        for target, count, where, said, file in tqdm(results, "Files", cases, disable=None):
            counts[f"{target} cases"] += 1
            counts[f"{target} {count}"] += 1
            if count in BROKEN:
                failures[f"{target}: {where}"] += 1
                if failures[f"{target}: {where}"] == 1:
                    keep.mkdir(parents=True, exist_ok=True)
                    kept = keep / f"{target}{len(failures)}"
                    kept.write_bytes(file)
                    tqdm.write(f"{target}: {where}: {said} ({kept})")
    for failure, count in failures.items():
        print(f"{failure}: {count:,} times")
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Print the counts; give 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000, help="shared by the readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default="samples/fuzz", help="folder of what breaks")
    flags = parser.parse_args(arguments)
    broken = [f"{target} {count}" for target in TARGETS for count in BROKEN]
    return conclude(stress(flags.cases, flags.seed, flags.keep), broken)


if __name__ == "__main__":
    sys.exit(main())
