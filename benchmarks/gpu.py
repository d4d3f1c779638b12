"""Everything that only a GPU can show, in about ten minutes:

    python -m benchmarks.gpu --data path/to/faces

runs each part in a process of its own with a time limit, so that one that fails or hangs costs no
other, and prints what to paste into docs/speed.md. It needs requirements.txt, pytest for the first
part, and a flat folder of images (made up if there is none). `--part NAME` runs one alone,
`--device cpu --steps 2` shows on a machine without a GPU that all of them run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import machine, write_images
from benchmarks.throughput import our_step
from dataset import load, to_image
from models import Generator, generate, sample_latents
from serialization import checkpoint
from serialization.checkpoint import SHIPPED
from train import Config, train
from training.acceleration import half_precision
from training.logger import read_log
from utils import pick_device

ROOT = Path(__file__).parent.parent
LIMITS = {  # seconds
    "tests": 150, "commands": 240, "images": 60, "resume": 90, "throughput": 240, "profile": 60,
    "separate": 60, "settings": 120,
}  # fmt: skip
KINDS = {  # what a kernel is called that does it
    "convolution": ("conv", "gemm", "cudnn", "cutlass", "xmma", "implicit", "winograd", "mm"),
    "batch norm": ("batch_norm", "batchnorm", "bn_"),
    "Adam": ("adam",),
    "padding and layout": ("nchw", "nhwc", "pad", "copy", "cat"),
}


def tests(data: Path, device: str, steps: int, features: int) -> None:
    """Run the tests that need a GPU."""
    subprocess.run([sys.executable, "-m", "pytest", "-n0", "tests/training/test_acceleration.py"],
                   cwd=ROOT, check=True)  # fmt: skip


def commands(data: Path, device: str, steps: int, features: int) -> None:
    """Run each script on the device: found, by name, without the graph, with R1, in fp16."""
    words = [
        f"train.py --data {data} --name auto --steps {steps} --batch_size 32 "
        f"--features {features}",
        f"train.py --data {data} --name named --steps {steps} --batch_size 32 --device {device} "
        f"--features {features}",
        f"train.py --data {data} --name plain --steps {steps} --batch_size 32 --no_graph --r1 1 "
        f"--features {features}",
        f"train.py --data {data} --name half --steps {steps} --batch_size 32 --precision fp16 "
        f"--features {features}",
        "generate.py", f"generate.py --load_path checkpoints/auto/last.pth --device {device}",
        f"evaluate.py --load_path checkpoints/auto/last.pth --data {data} --num_output 32 "
        "--feature_network discriminator",
        "probe.py --load_path checkpoints/digits/last.pth --data digits --labels_per_class 4",
        "explore.py walk --seeds 3,17", f"explore.py features --data {data}",
    ]  # fmt: skip
    words.insert(6, f"train.py --steps {steps}")
    failed = 0
    for line in words:
        script, *flags = line.split()
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, ROOT / script, *flags], capture_output=True, text=True
        )
        said = done.stderr.strip().splitlines() if done.returncode else ["ok"]
        print(f"{line}: {said[-1]} ({time.perf_counter() - began:.1f} s)")
        failed += done.returncode != 0
    if failed:
        raise SystemExit(f"{failed} of {len(words)} commands failed")


def images(data: Path, device: str, steps: int, features: int) -> None:
    """Compare the included generator's images of the same seeds on the device and on a CPU."""
    z = sample_latents(range(256), 100)
    pair = [
        to_image(generate(Generator.from_checkpoint(SHIPPED, where), z)).astype(int)
        for where in (pick_device(device), "cpu")
    ]
    apart = abs(pair[0] - pair[1])
    print(f"fp32, 256 images: at most {apart.max()} levels apart, {(apart > 0).mean():.2%} differ")


def resume(data: Path, device: str, steps: int, features: int) -> None:
    """Train on the device, go on on a CPU, and again on the device."""
    for number, where in enumerate((device, "cpu", device), 1):
        config = Config(
            data=str(data), name="moved", features=16, batch_size=32, image_size=32, device=where,
            steps=steps * number, resume="last", precision="fp32",
        )  # fmt: skip
        saved = checkpoint.load(train(config))
        assert saved["step"] == steps * number
        assert all(x.isfinite().all() for x in saved["generator_ema"].values())
    print(f"{device}, cpu, {device}: {saved['step']} steps")


def throughput(data: Path, device: str, steps: int, features: int) -> None:
    """Time the step and the way from files at batches of 128 and 32, beside two other loops."""
    for batch_size in (128, 32):
        subprocess.run(
            [sys.executable, "-m", "benchmarks.throughput", "--data", data, "--device", device,
             "--steps", str(steps), "--repeats", "3", "--batch_size", str(batch_size),
             "--features", str(features), "--expert"],
            cwd=ROOT, check=True,
        )  # fmt: skip


def profiled(data: Path, device: str, steps: int, features: int) -> None:
    """Print the share of the device's time by kind of kernel, in a plain step at batch 128."""
    where = pick_device(device)
    precision = half_precision(where) or "fp32"
    config = Config(
        channels=3, image_size=64, features=features, precision=precision, no_graph=True
    )  # fmt: skip
    step, inputs = our_step(config, load(str(data), (64, 64), 3), where)
    stream = inputs.steps(0)
    for _ in range(3):
        step(next(stream))
    on_gpu = where.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as recorded:
        for _ in range(min(steps, 20)):
            step(next(stream))
        if on_gpu:
            torch.cuda.synchronize()
    seconds: dict[str, float] = defaultdict(float)
    count = 0
    for event in recorded.key_averages():
        taken = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        name = event.key.lower()
        kinds = (kind for kind, words in KINDS.items() if any(word in name for word in words))
        seconds[next(kinds, "other")] += taken / 1e6
        count += event.count
    total = sum(seconds.values())
    print(f"{count / min(steps, 20):.0f} kernels, {total / min(steps, 20) * 1e3:.2f} ms a step")
    for kind, taken in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"| {kind} | {taken / total:.0%} |")


def separate(data: Path, device: str, steps: int, features: int) -> None:
    """Time `generate.py --separate`."""
    for count in (64, steps * 100):  # the first for the start alone
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, ROOT / "generate.py", "--separate", "--num_output", str(count),
             "--output", f"separate-{count}", "--device", device],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        print(f"{count} images, one file each: {time.perf_counter() - began:.1f} s in all")


def settings(data: Path, device: str, steps: int, features: int) -> None:
    """Train with settings/faces64.txt as a user does, and read the speed from the log."""
    words = [f"@{ROOT / 'settings' / 'faces64.txt'}", "--data", data, "--name", "faces"]
    words += ["--steps", str(steps * 10), "--device", device, "--features", str(features)]
    subprocess.run([sys.executable, ROOT / "train.py", *words], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    speeds = [entry["images_per_second"] for entry in read_log(Path("samples/faces/log.jsonl"))]
    print(f"faces64.txt: {np.median(speeds):,.0f} images/s, the median of {len(speeds)} log lines")


PARTS: dict[str, Callable[[Path, str, int, int], None]] = {
    "tests": tests, "commands": commands, "images": images, "resume": resume,
    "throughput": throughput, "profile": profiled, "separate": separate, "settings": settings,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, each in a process of its own; return how many failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", type=Path, help="a flat folder of 128 images or more (default: made up)"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=60, help="of a measurement")
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--part", choices=PARTS, help="one alone (default: all)")
    flags = parser.parse_args(arguments)
    if flags.part:
        PARTS[flags.part](flags.data, flags.device, flags.steps, flags.features)
        return 0
    print(machine())
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        data = flags.data.resolve() if flags.data else write_images(Path(folder, "made"), 600)
        for name in PARTS:
            print(f"\n## {name}", flush=True)
            words = ["--part", name, "--data", str(data), "--device", flags.device]
            words += ["--steps", str(flags.steps), "--features", str(flags.features)]
            try:
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.gpu", *words], cwd=folder, check=True,
                    timeout=LIMITS[name], env=os.environ | {"PYTHONPATH": str(ROOT)},
                )  # fmt: skip
            except subprocess.SubprocessError as error:
                print(f"FAILED: {error}")
                failed.append(name)
    print(f"\n{len(PARTS) - len(failed)} of {len(PARTS)} parts passed; failed: {failed or 'none'}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
