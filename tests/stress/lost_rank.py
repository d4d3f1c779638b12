"""Kill one of two ranks at random moments: the run ends soon, and a restart goes on.

    python tests/stress/lost_rank.py --times 10

Without restarts the whole run must end within 10 seconds. With --max-restarts and --resume it must
go on from its last checkpoint by itself, and end equal, by hash, to a run that lost no rank.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from harness import RUN, TORCHRUN, command, conclude, digest, last_step, start, write_images
from tqdm import tqdm

PATIENCE = 10.0  # seconds from the death of a rank to the end of the run
BROKEN = ("late", "hung", "failed", "not equal", "left behind")


def ranks_of(process: subprocess.Popen) -> list[int]:
    """Return the process numbers of the ranks that torchrun has started."""
    words = ["pgrep", "-P", str(process.pid), "-f", "train.py"]
    return [int(word) for word in subprocess.run(words, capture_output=True).stdout.split()]


def kill_one(process: subprocess.Popen, log: Path, after: int, which: int) -> float:
    """Kill a rank when the log has `after` steps, and give the time."""
    while last_step(log) < after:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(sorted(ranks_of(process))[which], signal.SIGKILL)
    return time.monotonic()


def stress(times: int, steps: int, seed: int = 0) -> Counter:
    """Lose a rank so many times without restarts, and as many with; give the counts."""
    counts: Counter = Counter()
    moments = random.Random(seed)
    # One thread for each rank; the other works around restarts that hang now and then with gloo.
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    bar = tqdm(total=2 * times, desc="Lost ranks", disable=None)
    with tempfile.TemporaryDirectory() as name, bar:
        folder = Path(name)
        write_images(folder / "images", 20, size=(16, 16))

        def play(run: str, *options: str) -> tuple[subprocess.Popen, Path]:
            flags = [*RUN, "--log_every", "1", "--steps", f"{steps}", "--name", run, "--resume"]
            words = command("train.py", *flags, launcher=[*TORCHRUN, *options])
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            return start(folder, words, **quiet), folder / "samples" / run / "log.jsonl"

        def result(run: str) -> str:
            return digest(folder / "checkpoints" / run / "last.pth")

        process, _ = play("unbroken")
        assert process.wait() == 0
        for i in range(times):
            process, log = play(f"lost{i}")
            ranks = (
                kill_one(process, log, moments.randrange(1, steps // 2), i % 2),
                ranks_of(process),
            )
            process.wait()
            seconds = time.monotonic() - ranks[0]
            counts["slowest end, in ms"] = max(counts["slowest end, in ms"], round(1000 * seconds))
            counts["ended"] += 1
            counts["late"] += seconds > PATIENCE
            counts["left behind"] += sum(map(is_alive, ranks[1]))
            bar.update()
        for i in range(times):
            process, log = play(f"again{i}", "--max-restarts=3")
            kill_one(process, log, moments.randrange(1, steps // 2), i % 2)
            try:
                status = process.wait(120)
            except subprocess.TimeoutExpired:
                process.terminate()
                status = None
            counts["hung" if status is None else "failed" if status else "restarted"] += 1
            if status == 0:
                counts["equal" if result(f"again{i}") == result("unbroken") else "not equal"] += 1
            bar.update()
    return counts


def is_alive(number: int) -> bool:
    """Return whether a process still runs."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """Print the counts; give 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=10, help="that a rank is lost in each way")
    parser.add_argument("--steps", type=int, default=400, help="of each run")
    flags = parser.parse_args(arguments)
    return conclude(stress(flags.times, flags.steps), BROKEN)


if __name__ == "__main__":
    sys.exit(main())
