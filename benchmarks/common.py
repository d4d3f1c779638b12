"""What the benchmarks share: the machine in one line, images to read, things timed in turn."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from tqdm import tqdm


def machine() -> str:
    """Return the hardware, the versions and the command of this run, for the head of a table."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = torch.cpu.get_capabilities().get("cpu_name", platform.processor())
    bf16 = [name for name in ("amx_bf16", "avx512_bf16") if torch.cpu.get_capabilities().get(name)]
    modules = (("torch", torch), ("torchvision", torchvision), ("Pillow", PIL))
    versions = ", ".join(f"{name} {module.__version__}" for name, module in modules)
    return (
        f"{device}, {os.cpu_count()} cores {' '.join(bf16)}, {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, {versions}\n"
        f"python -m benchmarks.{Path(sys.argv[0]).stem} {' '.join(sys.argv[1:])}"
    )


def write_images(folder: Path, count: int, size: tuple[int, int] = (178, 218)) -> Path:
    """Write `count` JPEGs of `size` (width, height) with the smoothness of photos, and give it."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in tqdm(range(count), desc="Writing images", disable=None, leave=False):
        coarse = Image.fromarray(random.integers(0, 256, (12, 10, 3), np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(int)
        grain = random.integers(-6, 7, smooth.shape)
        image = Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
        image.save(folder / f"{i:07d}.jpg", quality=90)
    return folder


def in_turn(
    contestants: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Time each contestant once a round, in seconds, so that a slow minute strikes all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in tqdm(range(repeats), desc="Rounds", disable=None, leave=False):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def table(seconds: Mapping[str, list[float]], images: int) -> str:
    """Lay out images a second, and the ratio to the first row: medians over the rounds."""
    first, *_ = seconds.values()
    lines = ["| | images/s | ratio | least to most |", "|---|---|---|---|"]
    for name, taken in seconds.items():
        ratios = sorted(other / own for other, own in zip(first, taken, strict=True))
        speed = images / statistics.median(taken)
        least, middle, most = ratios[0], statistics.median(ratios), ratios[-1]
        lines.append(f"| {name} | {speed:,.0f} | {middle:.2f} | {least:.2f} to {most:.2f} |")
    return "\n".join(lines)
