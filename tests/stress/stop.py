"""Ask training runs to stop at random moments, with each signal, alone and under torchrun.

    python tests/stress/stop.py --times 30

A run must save its step within 5 seconds, lose none that it has logged, say how to go on and end
with 128 + the signal's number; that its ranks agree on the step shows in the end, when the run that
went on must equal, by hash, one that was never stopped.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from harness import (
    RUN,
    TORCHRUN,
    checkpoint,
    command,
    conclude,
    digest,
    last_step,
    run,
    start,
    write_images,
)
from tqdm import tqdm

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
BROKEN = ("late", "wrong status", "not said", "steps lost", "failed", "not equal")


def stop(
    folder: Path, flags: list[str], launcher: list[str], number: int, after: int, patience: float
) -> Counter:
    """Start a run, send it a signal when its log has `after` steps, and count what it does."""
    counts: Counter = Counter()
    name = flags[-1]
    process = start(folder, command("train.py", *flags, launcher=launcher))
    log = folder / "samples" / name / "log.jsonl"
    while process.poll() is None and last_step(log) < after:
        time.sleep(0.01)
    sent = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate()
    seconds = time.monotonic() - sent
    counts["stopped"] += 1
    counts["late"] += seconds > patience
    counts["not said"] += "go on with train.py" not in said
    if not launcher:  # torchrun ends with a status of its own
        counts["wrong status"] += process.returncode != 128 + number
    step = checkpoint.load(folder / "checkpoints" / name / "last.pth")["step"]
    counts["steps lost"] += max(0, last_step(log) - step)
    counts["slowest, in ms"] = round(1000 * seconds)
    return counts


def stress(times: int, steps: int, patience: float, seed: int = 0) -> Counter:
    """Stop a run so many times, and two ranks as many; give the counts."""
    counts: Counter = Counter()
    moments = random.Random(seed)
    os.environ["OMP_NUM_THREADS"] = "1"  # two ranks on two cores
    bar = tqdm(total=2 * times, desc="Signals", disable=None)
    with tempfile.TemporaryDirectory() as name, bar:
        folder = Path(name)
        write_images(folder / "images", 20, size=(16, 16))

        flags = [*RUN, "--log_every", "1", "--steps", f"{steps}", "--name"]

        def end(name: str, launcher: list[str]) -> str:
            """Play a run to its end, and give the hash of what it learned."""
            words = command("train.py", "--resume", *flags, name, launcher=launcher)
            status, said = run(folder, words)
            if status:
                bar.write(said)
                counts["failed"] += 1
            return digest(folder / "checkpoints" / name / "last.pth")

        for launcher in ([], TORCHRUN):
            expected = end(f"unbroken{len(launcher)}", launcher)
            for i, number in zip(range(times), itertools.cycle(NUMBERS), strict=False):
                name = f"run{len(launcher)}-{i}"
                after = moments.randrange(1, steps // 2)
                seen = stop(folder, [*flags, name], launcher, number, after, patience)
                slowest = max(counts["slowest, in ms"], seen["slowest, in ms"])
                counts.update(seen)
                counts["slowest, in ms"] = slowest
                counts["equal" if end(name, launcher) == expected else "not equal"] += 1
                bar.update()
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Print the counts; give 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=30, help="a run is stopped")
    parser.add_argument("--steps", type=int, default=400, help="of each run")
    parser.add_argument("--patience", type=float, default=5, help="seconds that saving may take")
    flags = parser.parse_args(arguments)
    return conclude(stress(flags.times, flags.steps, flags.patience), BROKEN)


if __name__ == "__main__":
    sys.exit(main())
