"""What the stress programs share: a small run to do harm to, and the counts that they print."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import write_images  # noqa: E402, F401

from serialization import checkpoint  # noqa: E402

# A run of 5 steps an epoch, which takes every chance to write a file.
RUN = ["--data", "images", "--image_size", "16", "--features", "8", "--batch_size", "4",
       "--save_every", "1", "--keep", "3", "--device", "cpu", "--precision", "fp32"]  # fmt: skip
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
STATES = ("generator", "discriminator", "optimizer_g", "optimizer_d", "generator_ema")

GIGABYTE = 2**30

# Runs a command and prints the most memory that it held, in bytes, as the last line. A process
# between, as one that is started by a large one counts from that one's size.
MEASURE = """
import os, sys
_, status, used = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
print(used.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def command(script: str, *flags: str, launcher: Sequence[str] = ()) -> list[str]:
    """Return the command that runs one of our scripts, also by a launcher such as TORCHRUN."""
    return [sys.executable, *launcher, str(ROOT / script), *flags]


def start(folder: Path, words: Sequence[str], **options) -> subprocess.Popen:
    """Start a command in `folder`; its output can be read from the process."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=folder, **pipes | options)


def run(folder: Path, words: Sequence[str], **options) -> tuple[int, str]:
    """Run a command in `folder`; give its status and what it said on stderr."""
    process = start(folder, words, **options)
    _, said = process.communicate()
    return process.returncode, said or ""


def measured(folder: Path, words: list[str], **options) -> tuple[int, str, str, int]:
    """Run a command; give its status, what it said on stdout and on stderr, and its peak memory.

    The memory is that of its largest process, in bytes.
    """
    words = [sys.executable, "-S", "-c", MEASURE, *words]
    process = start(folder, words, errors="replace", **options)
    out, said = process.communicate()
    *lines, peak = out.splitlines()
    return process.returncode, "\n".join(lines), said, int(peak)


def digest(path: Path) -> str:
    """Return a hash of all networks and optimizers of a checkpoint."""
    contents = checkpoint.load(path)
    return hashlib.sha256(repr([flat(contents[name]) for name in STATES]).encode()).hexdigest()


def last_step(log: Path) -> int:
    """Return the last step of a run's log, 0 if there is none yet."""
    lines = log.read_text().splitlines() if log.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def flat(value: object) -> object:
    """Convert a nest of dictionaries, lists and tensors into plain values."""
    if isinstance(value, dict):
        return {key: flat(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [flat(inner) for inner in value]
    if hasattr(value, "numpy"):
        return value.numpy().tobytes()
    return value


def conclude(counts: Counter, broken: Sequence[str]) -> int:
    """Print the counts; give 1 if one of those that stand for a broken promise is not 0."""
    for name in [*(name for name in counts if name not in broken), *broken]:
        print(f"{name}: {counts[name]:,}")
    return int(any(counts[name] for name in broken))
