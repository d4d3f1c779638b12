"""Train a DCGAN on a folder of images, a .zip of one, or a set known by name.

    python train.py                         handwritten digits, in a few minutes on any computer
    python train.py --data path/to/cats     your own images; --resume goes on after a break
    torchrun --standalone --nproc_per_node gpu train.py     on every GPU of this machine

Flags can also come from a file, one `--flag value` a line: python train.py @settings.txt
"""

from __future__ import annotations

import importlib.util
import math
import shlex
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from config import Config
from dataset import batches, load, parse_size, to_tensor
from game import (
    METRICS,
    Players,
    check_saved,
    drawn_at,
    load_players,
    make_players,
    train_step,
    update_ema,
)
from losses import LOSSES
from preprocessing.sources import DataError
from serialization.resume import find_run
from training import distributed
from training.acceleration import Graph
from training.best import Best
from training.keeper import Diverged, Keeper, Plan, what_is_due
from training.logger import open_record
from training.signals import Stopped, noted
from utils import (
    SettingsError,
    UserError,
    check_writable,
    parse_settings,
    pick_device,
    pick_precision,
    run_script,
    warn,
)

SMALL_SET = 500  # images below which --augment measured better
FEW_STEPS = 500  # digits were readable after 280 steps, the eyes of cats after 600


class Collapsed(UserError):
    """A run that --on_collapse stop has ended, after saving it."""


def train(config: Config) -> Path:
    """Train as `config` says, and give the path of the last checkpoint.

    Raises:
        SettingsError, DataError, CheckpointError: before anything is written but decoded images,
            for settings, data or a checkpoint that cannot be used.
    """
    with distributed.only_first_speaks():
        config, saved = find_run(config)
    device = pick_device(config.device)
    with distributed.joined(device):
        config = replace(config, precision=pick_precision(config.precision, device))
        check_run(config, device)
        images = load_images(config)
        count, height, width, channels = images.shape
        config = replace(
            config, image_size=f"{height}x{width}", channels=channels, clear_cache=False
        )
        plan = make_plan(config, count, saved)
        if len(set(distributed.gather((plan, images.shape)))) > 1:
            raise DataError("the ranks found different checkpoints, or other images")
        if plan.start >= plan.total:
            print(
                f"{saved['path']} has {plan.start:,} steps already; --epochs and --steps ask for "
                "no more"
            )
            return saved["path"]

        if saved:
            check_saved(config, saved)
        measures = config.evaluate_every and distributed.rank() == 0
        best = Best(config, images, device) if measures else None
        distributed.gather(None)  # for hours, where the networks' own waiting would end sooner
        players = make_players(config, device)
        if saved:
            load_players(players, saved)
        sizes = [sum(p.numel() for p in network.parameters()) for network in players[:2]]
        where = f"{device} in {config.precision}" + f", {distributed.count()} ranks" * (
            distributed.count() > 1
        )
        print(
            f"{config.name}: {count:,} images of {channels} x {height} x {width} (C x H x W)\n"
            f"device: {where}\n"
            f"parameters: {sizes[0]:,} generator, {sizes[1]:,} discriminator\n"
            f"steps: {plan.start:,} to {plan.total:,}, {plan.steps_per_epoch:,} an epoch, "
            f"{plan.batch_size} images each\n"
            f"writing to: {Path(config.checkpoint_dir, config.name)}, "
            f"{Path(config.sample_dir, config.name)}"
        )
        if best:
            print(
                f"measuring: {best.network.frechet} of {best.count:,} images by "
                f"{best.network.title}; floor {best.floor:.1f}"
            )
        ended = play(config, plan, players, images, best)
        speaks = distributed.rank() == 0
    if not ended:
        return Path(config.checkpoint_dir, config.name, "last.pth")
    if not speaks:
        sys.exit(128 + ended.number if isinstance(ended, Stopped) else 2)
    raise ended


def check_run(config: Config, device: torch.device) -> None:
    """Refuse what can't be done here, before anything is read or written.

    Raises:
        SettingsError: naming the flag.
    """
    check_writable(Path(config.checkpoint_dir, config.name))
    check_writable(Path(config.sample_dir, config.name))
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise SettingsError("--tensorboard: not installed here; pip install tensorboard")
    if config.batch_size % distributed.count():
        raise SettingsError(
            f"--batch_size {config.batch_size}: must be a multiple of the "
            f"{distributed.count()} ranks"
        )
    if config.sync_bn and device.type != "cuda":
        warn("--sync_bn is for CUDA GPUs: here each rank's batch norm is its own")


def load_images(config: Config) -> np.ndarray:
    """Return the images (N, H, W, C) uint8; one rank of each machine decodes, if it must be.

    Raises:
        DataError: as `dataset.load`, or another rank has raised it.
    """
    size = config.image_size and parse_size(config.image_size)
    arguments = config.data, size, config.channels, config.download_dir, config.cache_dir
    images, mistake = None, None
    if distributed.local_rank() == 0:
        try:
            images = load(*arguments, clear_cache=config.clear_cache and distributed.rank() == 0)
        except DataError as error:
            mistake = error
    if any(distributed.gather(mistake is not None)):
        raise mistake or DataError(f"--data {config.data}: another rank could not read it")
    return load(*arguments, retry=False) if images is None else images


def make_plan(config: Config, count: int, saved: Mapping[str, Any] | None) -> Plan:
    """Plan the steps on `count` images, from those that the checkpoint `saved` has on."""
    batch_size = min(config.batch_size, count // distributed.count() * distributed.count())
    if batch_size == 0:
        raise DataError(f"--data {config.data}: has fewer images than there are ranks")
    if batch_size < config.batch_size:
        warn(f"only {count} images: the batch is {batch_size}, not {config.batch_size}")
    if saved and count != saved["pictures"]:
        warn(f"--data {config.data} has {count:,} images; it had {saved['images']:,}")
    steps_per_epoch = count // batch_size
    total = config.steps or config.epochs * steps_per_epoch
    if config.steps is None and total < FEW_STEPS:
        warn(f"{total} steps are few to learn from; raise --epochs, or lower --batch_size")
    # Not for sets by name, mostly of digits.
    if count < SMALL_SET and not config.augment and Path(config.data).exists():
        print(f"{count:,} images are a small set: --augment may draw better (docs/quality.md)")
    start, source = (saved["step"], saved["path"]) if saved else (0, None)
    return Plan(batch_size, steps_per_epoch, start, total, source)


def play(
    config: Config, plan: Plan, players: Players, images: np.ndarray, best: Best | None
) -> Stopped | Collapsed | None:
    """Play the steps of `plan` and keep what is due; give what has ended the run before its end."""
    batch_size, _, start, total, _ = plan
    device = next(players.generator.parameters()).device
    playing = players._replace(
        generator=distributed.share(players.generator, device),
        discriminator=distributed.share(players.discriminator, device),
    )

    def step_on(batch: Tensor, **drawn: Tensor) -> Tensor:
        return train_step(
            playing, LOSSES[config.loss], to_tensor(batch), precision=config.precision, **drawn
        )

    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes never change: let it try its algorithms
        step_on = Graph(step_on) if distributed.count() == 1 else step_on

    part = distributed.part(batch_size)
    stream = batches(images, batch_size, config.seed, start, config.mirror, part, device)
    bar = tqdm(total=total, initial=start, unit="step", disable=None)
    with noted() as signal_noted, bar, open_record(config, start, plan.source, images) as record:
        keeper = record and Keeper(config, plan, players, images, record, best, signal_noted)
        unread, stop, collapsed = [], 0, 0
        for step, batch in zip(range(start + 1, total + 1), stream, strict=False):
            drawn = drawn_at(config, step, batch_size, part, device)
            unread.append(step_on(batch=batch, **drawn))
            update_ema(players.generator_ema, players.generator, step, config.ema)
            stop = distributed.largest(signal_noted())
            bar.update()
            due = what_is_due(config, plan, step, stop > 0)
            if due.log:
                values = read_metrics(unread, step)
                ends = keeper.keep(step, due, values, bar) if keeper else False
            if due.grid:  # from which the first rank tells
                collapsed = distributed.largest(ends)
            if due.save:  # which may have taken long: a signal that came meanwhile loses no step
                stop = distributed.largest(signal_noted())
            if stop or collapsed:
                break
        if keeper:
            keeper.conclude(step)
    distributed.gather(None)  # so that none ends the others before the first has saved
    if step == total or not (stop or collapsed):
        return None
    flags = f"--name {shlex.quote(config.name)}"
    if config.checkpoint_dir != "checkpoints":
        flags += f" --checkpoint_dir {shlex.quote(config.checkpoint_dir)}"
    if stop:
        name = signal.Signals(stop).name
        return Stopped(stop, f"{name}: saved step {step:,}; go on with train.py {flags} --resume")
    return Collapsed(
        f"saved step {step:,}, as its images are all alike; --on_collapse go_on goes on"
    )


def read_metrics(unread: list[Tensor], step: int) -> dict[str, float]:
    """Read what the steps up to `step` gave, which waits for the device; give the last one's.

    Raises:
        Diverged: a value is not finite.
    """
    table = distributed.mean(torch.stack(unread)).tolist()
    unread.clear()
    for number, row in enumerate(table, step - len(table) + 1):
        if not all(map(math.isfinite, row)):
            raise Diverged(number)
    return dict(zip(METRICS, table[-1], strict=True))


if __name__ == "__main__":
    run_script(lambda: train(parse_settings(Config, __doc__)))
