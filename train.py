"""Train a DCGAN on a folder of pictures, a .zip of one, or a set known by name.

    python train.py                         handwritten digits, in a few minutes on any computer
    python train.py --data path/to/cats     your own pictures; --resume goes on after a break
    torchrun --standalone --nproc_per_node gpu train.py     on every GPU of this machine

Flags can also come from a file, one `--flag value` a line: python train.py @settings.txt
"""

from __future__ import annotations

import copy
import importlib.util
import math
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import checkpoint
import ranks
from checkpoint import CheckpointError
from config import Config
from dataset import batches, load, parse_size, to_image, to_tensor
from game import (
    METRICS,
    Players,
    check_saved,
    drawn_at,
    follow,
    load_players,
    make_players,
    tensors_in,
    train_step,
)
from graph import Graph
from losses import LOSSES
from models import draw, sample_latents
from record import Record, open_record, prune
from resume import find_run
from signals import Stopped, noted
from sources import DataError
from utils import (
    SettingsError,
    check_writable,
    parse_settings,
    pick_device,
    pick_precision,
    run_script,
    warn,
)

FEW_STEPS = 500  # digits were readable after 280 steps, the eyes of cats after 600
GRID_SEEDS = range(64)  # the latents of every sample grid, those that generate.py draws by default


class Diverged(ArithmeticError):
    """A run whose numbers have left the range of floats."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"step {step:,} gave numbers that are not finite, of which nothing was written; "
            "--resume goes back to the last checkpoint, a lower --learning_rate begins a new run"
        )


class Plan(NamedTuple):
    """How long a run is."""

    batch_size: int  # over all ranks
    steps_per_epoch: int
    start: int  # steps done
    total: int  # steps in all
    source: Path | None  # the checkpoint that it goes on from


def train(config: Config) -> Path:
    """Train as `config` says, and give the path of the last checkpoint.

    Raises:
        SettingsError, DataError, CheckpointError: before anything is written but decoded pictures,
            for settings, data or a checkpoint that cannot be used.
    """
    device = pick_device(config.device)
    with ranks.joined(device):
        config, saved = find_run(config)
        config = replace(config, precision=pick_precision(config.precision, device))
        check_run(config, device)
        images = load_images(config)
        count, height, width, channels = images.shape
        config = replace(
            config, image_size=f"{height}x{width}", channels=channels, clear_cache=False
        )
        plan = make_plan(config, count, saved)
        if len(set(ranks.gather(plan))) > 1:
            raise DataError("the ranks found different checkpoints, or other numbers of pictures")
        if plan.start >= plan.total:
            print(
                f"{saved['path']} has {plan.start:,} steps already; --epochs and --steps ask for "
                "no more"
            )
            return saved["path"]

        if saved:
            check_saved(config, saved)
        players = make_players(config, device)
        if saved:
            load_players(players, saved)
        sizes = [sum(p.numel() for p in network.parameters()) for network in players[:2]]
        where = f"{device} in {config.precision}" + f", {ranks.count()} ranks" * (ranks.count() > 1)
        print(
            f"{config.name}: {count:,} pictures of {channels} x {height} x {width} (C x H x W)\n"
            f"device: {where}\n"
            f"parameters: {sizes[0]:,} generator, {sizes[1]:,} discriminator\n"
            f"steps: {plan.start:,} to {plan.total:,}, {plan.steps_per_epoch:,} an epoch, "
            f"{plan.batch_size} pictures each\n"
            f"writing to: {Path(config.checkpoint_dir, config.name)}, "
            f"{Path(config.sample_dir, config.name)}"
        )
        stop = play(config, plan, players, images)
        speaks = ranks.rank() == 0
    folder = Path(config.checkpoint_dir, config.name)
    if not stop:
        return folder / "last.pth"
    if not speaks:
        sys.exit(128 + stop.number)
    raise stop


def check_run(config: Config, device: torch.device) -> None:
    """Refuse what can't be done here, before anything is read or written.

    Raises:
        SettingsError: naming the flag.
    """
    check_writable(Path(config.checkpoint_dir, config.name))
    check_writable(Path(config.sample_dir, config.name))
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise SettingsError("--tensorboard: not installed here; pip install tensorboard")
    if config.batch_size % ranks.count():
        raise SettingsError(
            f"--batch_size {config.batch_size}: must be a multiple of the {ranks.count()} ranks"
        )
    if config.sync_bn and device.type != "cuda":
        warn("--sync_bn is for CUDA GPUs: here each rank's batch norm is its own")


def load_images(config: Config) -> np.ndarray:
    """Give the pictures (N, H, W, C) uint8; one rank of each machine decodes, if it must be.

    Raises:
        DataError: as `dataset.load`, or another rank has raised it.
    """
    size = config.image_size and parse_size(config.image_size)
    arguments = config.data, size, config.channels, config.download_dir, config.cache_dir
    images, mistake = None, None
    if ranks.local_rank() == 0:
        try:
            images = load(*arguments, clear_cache=config.clear_cache and ranks.rank() == 0)
        except DataError as error:
            mistake = error
    if any(ranks.gather(mistake is not None)):
        raise mistake or DataError(f"--data {config.data}: another rank could not read it")
    return load(*arguments, retry=False) if images is None else images


def make_plan(config: Config, count: int, saved: Mapping[str, Any] | None) -> Plan:
    """Plan the steps on `count` pictures, from those that the checkpoint `saved` has on."""
    batch_size = min(config.batch_size, count // ranks.count() * ranks.count())
    if batch_size == 0:
        raise DataError(f"--data {config.data}: has fewer pictures than there are ranks")
    if batch_size < config.batch_size:
        warn(f"only {count} pictures: the batch is {batch_size}, not {config.batch_size}")
    if saved and count != saved["pictures"]:
        warn(f"--data {config.data} has {count:,} pictures; it had {saved['pictures']:,}")
    steps_per_epoch = count // batch_size
    total = config.steps or config.epochs * steps_per_epoch
    if config.steps is None and total < FEW_STEPS:
        warn(f"{total} steps are few to learn from; raise --epochs, or lower --batch_size")
    start, source = (saved["step"], saved["path"]) if saved else (0, None)
    return Plan(batch_size, steps_per_epoch, start, total, source)


def play(config: Config, plan: Plan, players: Players, images: np.ndarray) -> Stopped | None:
    """Play the steps of `plan` and write what the run keeps; tell if a signal has stopped it."""
    batch_size, steps_per_epoch, start, total, _ = plan
    device = next(players.generator.parameters()).device
    playing = players._replace(
        generator=ranks.share(players.generator, device),
        discriminator=ranks.share(players.discriminator, device),
    )

    def step_on(batch: Tensor, **drawn: Tensor) -> Tensor:
        return train_step(
            playing, LOSSES[config.loss], to_tensor(batch), precision=config.precision, **drawn
        )

    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes never change: let it try its algorithms
        step_on = Graph(step_on) if ranks.count() == 1 else step_on

    part = ranks.part(batch_size)
    stream = batches(images, batch_size, config.seed, start, config.mirror, part, device)
    bar = tqdm(total=total, initial=start, unit="step", disable=None)
    with noted() as signal_noted, bar, open_record(config, start, plan.source, images) as record:
        began = clock = time.perf_counter()
        logged, unread = start, []
        for step, batch in zip(range(start + 1, total + 1), stream, strict=False):
            drawn = drawn_at(config, step, batch_size, part, device)
            unread.append(step_on(batch=batch, **drawn))
            follow(players.generator_ema, players.generator, step, config.ema)
            stop = ranks.largest(signal_noted())
            bar.update()
            saves = step % steps_per_epoch == 0 or step == total or stop > 0
            logs = saves or step % config.log_every == 0
            draws = saves or step % config.sample_every == 0
            if logs or draws:
                values = read_metrics(unread, step)
            if logs:
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                values["images_per_second"] = round((step - logged) * batch_size / seconds, 1)
                logged = step
                bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
            if record:
                # All that may find numbers that are not finite comes before the first write.
                grid = draw_grid(players, config, step) if draws else None
                contents = copy_states(players, step) if saves else {}
                if logs:
                    entry = {"step": step, "epoch": round(step / steps_per_epoch, 4), **values}
                    record.later(record.log, entry)
                if draws:
                    record.later(record.draw, f"step_{step:07d}", grid, step)
                if saves:
                    save(record, config, plan, step, contents | {"pictures": len(images)})
                    left = (clock - began) / (step - start) * (total - step)
                    bar.write(progress(plan, step, values, left))
            if stop:
                break
    ranks.gather(None)  # so that none ends the others before the first has saved
    if not stop or step == total:
        return None
    flags = f"--name {shlex.quote(config.name)}"
    if config.checkpoint_dir != "checkpoints":
        flags += f" --checkpoint_dir {shlex.quote(config.checkpoint_dir)}"
    name = signal.Signals(stop).name
    return Stopped(stop, f"{name}: saved step {step:,}; go on with train.py {flags} --resume")


def save(
    record: Record, config: Config, plan: Plan, step: int, contents: Mapping[str, Any]
) -> None:
    """Put off to write what is kept of a run at an epoch's end, or at its own.

    When it has all its steps, its last checkpoint comes last, as with it a run counts as done.
    """
    epoch, within = divmod(step, plan.steps_per_epoch)
    contents = {"config": asdict(config), "epoch": epoch, "step": step, **contents}
    last = Path(config.checkpoint_dir, config.name, "last.pth")
    is_numbered, is_done = within == 0 and epoch % config.save_every == 0, step == plan.total
    if not is_done:
        record.later(checkpoint.save, last, contents)
    if is_numbered:
        record.later(checkpoint.save, last.with_name(f"epoch_{epoch:04d}.pth"), contents)
        record.later(prune, last.parent, config.keep)
    if is_numbered or is_done or within:  # within an epoch a signal has stopped it
        record.later(record.plot)
    if is_done:
        record.later(record.animate)
        record.later(checkpoint.save, last, contents)


def progress(plan: Plan, step: int, values: Mapping[str, float], left: float) -> str:
    """Say in a line how far a run is, and how it goes; `left` in seconds."""
    shown = "  ".join(f"{name} {values[name]:.3f}" for name in METRICS)
    return (
        f"epoch {step / plan.steps_per_epoch:.4g}  step {step:,}/{plan.total:,}  {shown}  "
        f"{values['images_per_second']:,.0f} images/s  {tqdm.format_interval(left)} left"
    )


def read_metrics(unread: list[Tensor], step: int) -> dict[str, float]:
    """Read what the steps up to `step` gave, which waits for the device; give the last one's.

    Raises:
        Diverged: a value is not finite.
    """
    table = ranks.mean(torch.stack(unread)).tolist()
    unread.clear()
    for number, row in enumerate(table, step - len(table) + 1):
        if not all(map(math.isfinite, row)):
            raise Diverged(number)
    return dict(zip(METRICS, table[-1], strict=True))


def draw_grid(players: Players, config: Config, step: int) -> np.ndarray:
    """Draw the pictures (64, H, W, C) uint8 of the sample grid.

    Raises:
        Diverged: a value is not finite.
    """
    grid = draw(players.generator_ema, sample_latents(GRID_SEEDS, config.z_dim, config.z_dist))
    if not grid.isfinite().all():
        raise Diverged(step)
    return to_image(grid)


def copy_states(players: Players, step: int) -> dict[str, Any]:
    """Copy the state of networks and optimizers, to be written while training goes on.

    Raises:
        Diverged: a weight, a statistic or a moment of Adam's is not finite.
    """
    states = {name: player.state_dict() for name, player in players._asdict().items()}
    if not all(bool(x.isfinite().all()) for x in tensors_in(states)):
        raise Diverged(step)
    return copy.deepcopy(states)


if __name__ == "__main__":
    run_script(lambda: train(parse_settings(Config, __doc__)), CheckpointError, Diverged)
