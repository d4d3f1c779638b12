"""Run the whole test suite in surroundings that a developer seldom has.

    sudo python tests/stress/surroundings.py
    sudo python tests/stress/surroundings.py --python path/to/environment/of/torch-2.11/bin/python

Without a network but loopback; and as a user who is not root, from a read-only checkout in a path
with spaces and letters of other scripts. Needs root, and an interpreter that another user may run.
(Closed outputs are tried in test_streams.py, as pytest itself can't do without.)
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from harness import ROOT, conclude

NOBODY = "65534"


def suite(python: str, tests: list[str], place: Path) -> list[str]:
    """Return the command of a test run that writes nothing into the checkout."""
    quiet = ["-p", "no:cacheprovider", "--basetemp", f"{place}/temporary"]
    return [python, "-m", "pytest", *quiet, *tests]


def surroundings(folder: Path) -> dict[str, tuple[list[str], Path]]:
    """Return for each name what goes before the command, and the checkout."""
    odd = folder / "Katzen & \u732b \u0642\u0637\u0637" / "dcgan"

    def skipped(folder: str, names: list[str]) -> list[str]:  # and what runs have left
        left = Path(folder).name in ("checkpoints", "samples")
        skip = (".git", "cache", "__pycache__")
        return [name for name in names if name in skip or (left and Path(folder, name).is_dir())]

    shutil.copytree(ROOT, odd, ignore=skipped)
    for path in (odd, *odd.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222 | 0o444)
    offline = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return {
        "without a network": (offline, ROOT),
        "another user, read-only, odd path": (nobody, odd),
    }


def main(arguments: list[str] | None = None) -> int:
    """Print how each run of the suite ended; give 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="the interpreter")
    parser.add_argument("tests", nargs="*", default=["tests"], help="what to give to pytest")
    flags = parser.parse_args(arguments)
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for name, (before, checkout) in surroundings(folder).items():
            place = folder / f"{counts['surroundings']}"
            place.mkdir(mode=0o777)
            place.chmod(0o777)
            words = [*before, *suite(flags.python, flags.tests, place)]
            home = os.environ | {"HOME": str(place), "TMPDIR": str(place)}
            done = subprocess.run(words, cwd=checkout, env=home, capture_output=True, text=True)
            print(f"{name}: {done.stdout.splitlines()[-1]}")
            if done.returncode:
                print(done.stdout[-5000:], done.stderr, file=sys.stderr)
            counts["surroundings"] += 1
            counts["failed"] += done.returncode != 0
    return conclude(counts, ["failed"])


if __name__ == "__main__":
    sys.exit(main())
