"""Make a run's numbers leave the range of floats, at five points of its state.

    python tests/stress/not_finite.py

The run goes on from a checkpoint in which that point holds a number near the end of the range. It
must name the step and end with status 2, with the checkpoints that were there untouched and
nothing written of what is not finite; a checkpoint that already holds such weights is refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from harness import RUN, checkpoint, command, conclude, run, write_images
from PIL import Image

HUGE = 3e38  # the largest 32-bit float is 3.4e38
BROKEN = ("not named", "wrong status", "checkpoints changed", "not finite in a file",
          "not refused")  # fmt: skip


def first(state: dict) -> torch.Tensor:
    return next(iter(state.values()))


def rate_of(optimizer: str) -> Callable[[dict], None]:
    def inject(saved: dict) -> None:
        saved[optimizer]["param_groups"][0]["lr"] = HUGE

    return inject


def weight_of_generator(saved: dict) -> None:
    first(saved["generator"]).fill_(HUGE)


def weight_of_discriminator(saved: dict) -> None:
    first(saved["discriminator"]).fill_(HUGE)


def moment_of_adam(saved: dict) -> None:
    first(saved["optimizer_d"]["state"])["exp_avg"].fill_(HUGE)


POINTS = {
    "weight of G": weight_of_generator,
    "weight of D": weight_of_discriminator,
    "learning rate of G": rate_of("optimizer_g"),
    "learning rate of D": rate_of("optimizer_d"),
    "moment of D's Adam": moment_of_adam,
}


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.pth"))}


def stress(points: int) -> Counter:
    """Inject at so many of `POINTS`, and give the counts."""
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", 20, size=(16, 16))
        wide = [*RUN, "--log_every", "7", "--sample_every", "2", "--precision", "fp32"]
        for i, (point, inject) in enumerate(list(POINTS.items())[:points]):
            flags = [*wide, "--name", f"run{i}"]
            assert run(folder, command("train.py", *flags, "--steps", "5"))[0] == 0
            checkpoints = folder / "checkpoints" / f"run{i}"
            saved = checkpoint.load(checkpoints / "last.pth")
            inject(saved)
            checkpoint.save(checkpoints / "last.pth", saved)
            before = contents_of(checkpoints)
            status, said = run(folder, command("train.py", *flags, "--steps", "40", "--resume"))
            counts["injected"] += 1
            counts["wrong status"] += status != 2
            named = len(said.splitlines()) == 1 and "step " in said and "not finite" in said
            if not named:
                print(f"{point}: {said}", file=sys.stderr)
            counts["not named"] += not named
            counts["checkpoints changed"] += contents_of(checkpoints) != before
            samples = folder / "samples" / f"run{i}"
            log = (samples / "log.jsonl").read_text()
            counts["not finite in a file"] += "NaN" in log or "Infinity" in log
            for grid in samples.glob("step_*.png"):
                with Image.open(grid) as image:
                    image.load()

            first(saved["generator_ema"]).fill_(float("nan"))
            checkpoint.save(checkpoints / "last.pth", saved)
            words = command("generate.py", "--load_path", f"{checkpoints / 'last.pth'}")
            status, said = run(folder, words)
            counts["not refused"] += status != 2 or "not finite" not in said
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Print the counts; give 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--points", type=int, default=len(POINTS))
    return conclude(stress(parser.parse_args(arguments).points), BROKEN)


if __name__ == "__main__":
    sys.exit(main())
