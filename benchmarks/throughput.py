"""Training speed: our step, and our way from files to steps, against a textbook loop.

    python -m benchmarks.throughput                         on images made up for it
    python -m benchmarks.throughput --data path/to/faces    on a flat folder of one's own

The textbook loop is what DCGAN tutorials write: 32-bit floats, ImageFolder and a DataLoader with
2 workers, BCELoss on a sigmoid, weight gradients wherever they arise, five `.item()` a step.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.common import in_turn, machine, table, write_images
from dataset import load
from preprocessing.cache import clear
from train import Config, build_gan, make_step
from training.acceleration import half_precision
from training.inputs import Inputs
from utils import pick_device

Z_DIM = 100
SIZE = 64


class Textbook:
    """The textbook DCGAN at 64x64."""

    def __init__(self, device: torch.device, features: int) -> None:
        f, layers = features, []
        for width, next_width in ((Z_DIM, 8 * f), (8 * f, 4 * f), (4 * f, 2 * f), (2 * f, f)):
            geometry = (4, 1, 0) if width == Z_DIM else (4, 2, 1)
            layers += [
                nn.ConvTranspose2d(width, next_width, *geometry, bias=False),
                nn.BatchNorm2d(next_width), nn.ReLU(True),
            ]  # fmt: skip
        layers += [nn.ConvTranspose2d(f, 3, 4, 2, 1, bias=False), nn.Tanh()]
        self.generator = nn.Sequential(*layers).to(device)

        layers = [nn.Conv2d(3, f, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
        for width in (f, 2 * f, 4 * f):
            layers += [
                nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
                nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2, True),
            ]  # fmt: skip
        layers += [nn.Conv2d(8 * f, 1, 4, 1, 0, bias=False), nn.Sigmoid()]
        self.discriminator = nn.Sequential(*layers).to(device)

        self.optimizer_g, self.optimizer_d = (
            torch.optim.Adam(network.parameters(), lr=0.0002, betas=(0.5, 0.999))
            for network in (self.generator, self.discriminator)
        )
        self.criterion, self.device = nn.BCELoss(), device

    def step(self, images: Tensor) -> list[float]:
        """Play one step on images (N, 3, 64, 64) in [-1, 1]."""
        self.discriminator.zero_grad()
        real = images.to(self.device)
        label = torch.full((len(real),), 1.0, device=self.device)
        output = self.discriminator(real).view(-1)
        error_real = self.criterion(output, label)
        error_real.backward()
        d_x = output.mean().item()

        fake = self.generator(torch.randn(len(real), Z_DIM, 1, 1, device=self.device))
        label.fill_(0.0)
        output = self.discriminator(fake.detach()).view(-1)
        error_fake = self.criterion(output, label)
        error_fake.backward()
        d_g_z1 = output.mean().item()
        self.optimizer_d.step()

        self.generator.zero_grad()
        label.fill_(1.0)
        output = self.discriminator(fake).view(-1)
        error_g = self.criterion(output, label)
        error_g.backward()
        d_g_z2 = output.mean().item()
        self.optimizer_g.step()
        return [(error_real + error_fake).item(), error_g.item(), d_x, d_g_z1, d_g_z2]


class Expert(Textbook):
    """The same networks as an expert trains them: bf16, channels_last, compiled, no `.item()`."""

    def __init__(self, device: torch.device, features: int) -> None:
        super().__init__(device, features)
        for network in (self.generator, self.discriminator):
            network.to(memory_format=torch.channels_last)
        self.discriminator = self.discriminator[:-1]  # the sigmoid is in the loss
        self.criterion = nn.BCEWithLogitsLoss()
        if device.type == "cuda":  # elsewhere it costs a minute and gains nothing
            self.generator = torch.compile(self.generator, mode="reduce-overhead")
            self.discriminator = torch.compile(self.discriminator, mode="reduce-overhead")

    def step(self, images: Tensor) -> Tensor:
        """Play one step on images (N, 3, 64, 64) in [-1, 1]; return the losses (2,)."""
        real = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        ones = torch.ones(len(real), device=self.device)
        autocast = torch.autocast(self.device.type, torch.bfloat16)
        self.optimizer_d.zero_grad()
        with autocast:
            fake = self.generator(torch.randn(len(real), Z_DIM, 1, 1, device=self.device))
            logit_real = self.discriminator(real).flatten().clone()
            logit_fake = self.discriminator(fake.detach()).flatten().clone()
        loss_d = self.criterion(logit_real.float(), ones)
        loss_d = loss_d + self.criterion(logit_fake.float(), torch.zeros_like(ones))
        loss_d.backward()
        self.optimizer_d.step()

        self.optimizer_g.zero_grad()
        with autocast:
            logit = self.discriminator(fake).flatten()
        loss_g = self.criterion(logit.float(), ones)
        loss_g.backward()
        self.optimizer_g.step()
        return torch.stack([loss_d, loss_g]).detach()


def textbook_batches(folder: Path, batch_size: int, workers: int = 2) -> Iterator[Tensor]:
    """Yield batches (N, 3, 64, 64) in [-1, 1] for ever; `folder` holds a folder per class."""
    steps = [
        transforms.Resize(SIZE), transforms.CenterCrop(SIZE), transforms.ToTensor(),
        transforms.Normalize((0.5,) * 3, (0.5,) * 3),
    ]  # fmt: skip
    images = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    if len(images) < batch_size:
        raise SystemExit(f"--batch_size {batch_size}: there are {len(images)} images")
    loader = DataLoader(images, batch_size, shuffle=True, num_workers=workers, drop_last=True)
    while True:
        for batch, _ in loader:
            yield batch


def our_step(
    config: Config, images: np.ndarray, device: torch.device
) -> tuple[Callable[[dict[str, Tensor]], Tensor], Inputs]:
    """Return a step of train.py's loop, as a function of its inputs, and where those come from."""
    inputs = Inputs(config, images, config.batch_size, slice(None), device)
    play, steps = make_step(config, build_gan(config, device), inputs, device), itertools.count(1)
    return lambda values: play(next(steps), **values), inputs


def main(arguments: list[str] | None = None) -> None:
    """Print two tables: the step alone, and from files to steps."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="a flat folder of images (default: made up)")
    parser.add_argument("--images", type=int, default=2048, help="how many to make up")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--steps", type=int, help="a round (default: 3, on a GPU 300)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--expert", action="store_true",
        help="beside a loop in bf16 with torch.compile and a loader worker for each core, too",
    )  # fmt: skip
    flags = parser.parse_args(arguments)
    device = pick_device(flags.device)
    steps = flags.steps or (300 if device.type == "cuda" else 3)
    torch.backends.cudnn.benchmark = device.type == "cuda"

    textbook = Textbook(device, flags.features)
    configs = [
        Config(
            channels=3, image_size=SIZE, features=flags.features, batch_size=flags.batch_size,
            precision=precision,
        )
        for precision in dict.fromkeys(("fp32", half_precision(device) or "fp32"))
    ]  # fmt: skip

    def timed(step: Callable[[Any], object], inputs: Iterable[Any]) -> None:
        for values in itertools.islice(inputs, steps):
            step(values)
        if device.type == "cuda":
            torch.cuda.synchronize()

    print(machine() + "\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "classes")
        folder.mkdir()
        if flags.data:
            (folder / "all").symlink_to(Path(flags.data).resolve())
        else:
            write_images(folder / "all", flags.images)
        cache_dir = str(Path(name, "cache"))

        def from_files(empty: bool) -> None:
            if empty:
                clear(cache_dir)
            images = load(str(folder), (SIZE, SIZE), 3, cache_dir=cache_dir)
            step, inputs = ours[configs[-1].precision]
            inputs.images = images
            with contextlib.closing(inputs.steps(0)) as stream:
                timed(step, stream)

        real = next(textbook_batches(folder, flags.batch_size)).to(device)
        images = load(str(folder), (SIZE, SIZE), 3, cache_dir=cache_dir)
        ours = {config.precision: our_step(config, images, device) for config in configs}
        alone: dict[str, Callable[[], object]] = {
            "textbook step, fp32": lambda: timed(textbook.step, itertools.repeat(real)),
        }
        for precision, (step, inputs) in ours.items():
            same = next(inputs.steps(0))
            alone[f"our step, {precision}"] = functools.partial(timed, step, itertools.repeat(same))
        whole = {
            "textbook, from files": lambda: timed(
                textbook.step, textbook_batches(folder, flags.batch_size)
            ),
            "ours, first start": lambda: from_files(empty=True),
            "ours, later starts": lambda: from_files(empty=False),
        }
        if flags.expert:
            expert, cores = Expert(device, flags.features), os.cpu_count() or 1
            alone["expert's step, bf16, compiled"] = lambda: timed(
                expert.step, itertools.repeat(real)
            )
            whole["textbook, from files, a worker a core"] = lambda: timed(
                textbook.step, textbook_batches(folder, flags.batch_size, cores)
            )
            whole["expert's, from files, a worker a core"] = lambda: timed(
                expert.step, textbook_batches(folder, flags.batch_size, cores)
            )
        for contestants in (alone, whole):
            in_turn(contestants, 2)  # until memory, algorithms and graphs have settled
            print(table(in_turn(contestants, flags.repeats), steps * flags.batch_size) + "\n")


if __name__ == "__main__":
    main()
