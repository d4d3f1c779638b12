"""What a run reads, checks and says before its first step."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dataset import load
from preprocessing.sources import DataError
from training import distributed
from utils import SettingsError, check_writable, parse_size, warn

SMALL_SET = 500  # images below which --augment measured better
FEW_STEPS = 250  # digits were readable after 280 steps, the eyes of cats after 600


class Schedule(NamedTuple):
    """How long a run is."""

    batch_size: int  # over all ranks
    steps_per_epoch: int
    start: int  # steps played before
    total: int  # steps in all


def check_run(config: Any, device: torch.device) -> None:
    """Refuse what cannot be done here, before anything is read or written.

    Raises:
        SettingsError: naming the flag.
    """
    check_writable(Path(config.checkpoint_dir, config.name))
    check_writable(Path(config.sample_dir, config.name))
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise SettingsError("--tensorboard: not installed here; pip install tensorboard")
    ranks = distributed.world_size()
    if config.batch_size % ranks:
        raise SettingsError(
            f"--batch_size {config.batch_size}: must be a multiple of the {ranks} ranks"
        )
    if config.sync_bn and device.type != "cuda":
        warn("--sync_bn is for CUDA GPUs: here each rank's batch norm is its own")


def load_images(config: Any) -> np.ndarray:
    """Load the images (N, H, W, C) uint8; one rank of each machine decodes them, if it must be.

    Raises:
        DataError: as `dataset.load`, or another rank has raised it.
    """
    size = config.image_size and parse_size(config.image_size)
    arguments = config.data, size, config.channels, config.download_dir, config.cache_dir
    images, mistake = None, None
    if distributed.local_rank() == 0:
        try:
            clear = config.clear_cache and distributed.rank() == 0
            images = load(*arguments, clear_cache=clear)
        except DataError as error:
            mistake = error
    if any(distributed.gather(mistake is not None)):
        raise mistake or DataError(f"--data {config.data}: another rank could not read it")
    return load(*arguments, retry=False) if images is None else images


def make_schedule(config: Any, count: int, saved: Mapping[str, Any] | None) -> Schedule:
    """Return the schedule of a run on `count` images, which goes on from the checkpoint `saved`.

    Raises:
        DataError: fewer images than ranks.
    """
    ranks = distributed.world_size()
    batch_size = min(config.batch_size, count // ranks * ranks)
    if batch_size == 0:
        raise DataError(f"--data {config.data}: has fewer images than there are ranks")
    if batch_size < config.batch_size:
        warn(f"only {count} images: the batch is {batch_size}, not {config.batch_size}")
    if saved and count != saved["pictures"]:
        warn(f"--data {config.data} has {count:,} images; it had {saved['pictures']:,}")
    steps_per_epoch = count // batch_size
    total = config.steps or config.epochs * steps_per_epoch
    if config.steps is None and total < FEW_STEPS:
        warn(f"{total} steps are few to learn from; raise --epochs, or lower --batch_size")
    # Not for named sets, which are mostly of digits.
    if count < SMALL_SET and not config.augment and Path(config.data).exists():
        print(f"{count:,} images are a small set: --augment may help (docs/quality.md)")
    return Schedule(batch_size, steps_per_epoch, saved["step"] if saved else 0, total)


def describe(
    config: Any, schedule: Schedule, gan: Any, images: np.ndarray, device: torch.device, best: Any
) -> None:
    """Print what the run is about to do."""
    count, height, width, channels = images.shape
    ranks = distributed.world_size()
    where = f"{device} in {config.precision}" + f", {ranks} ranks" * (ranks > 1)
    sizes = [sum(p.numel() for p in network.parameters()) for network in gan[:2]]
    print(
        f"{config.name}: {count:,} images of {channels} x {height} x {width} (C x H x W)\n"
        f"device: {where}\n"
        f"parameters: {sizes[0]:,} generator, {sizes[1]:,} discriminator\n"
        f"steps: {schedule.start:,} to {schedule.total:,}, {schedule.steps_per_epoch:,} an epoch, "
        f"{schedule.batch_size} images each\n"
        f"writing to: {Path(config.checkpoint_dir, config.name)}, "
        f"{Path(config.sample_dir, config.name)}"
    )
    if best:
        print(
            f"measuring: {best.network.frechet} of {best.count:,} images by "
            f"{best.network.title}; floor {best.floor:.1f}"
        )
