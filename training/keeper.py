"""What a run keeps and says, and when: its log, its grids, its checkpoints and the best of them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from config import Config
from dataset import to_device, to_image
from game import METRICS, Players, tensors_in
from losses import LOSSES
from metrics.features import recalibrate
from models import GENERATE_BATCH, generate, random_latents, sample_latents
from serialization import checkpoint
from training.best import Best
from training.logger import Record, prune, real_grid
from training.monitor import COLLAPSED, Referee, variety
from utils import UserError, random_at, warn

PATIENCE = 500  # steps that the game goes badly before that is worth a warning
SETTLING = 128  # images that batch norm takes its statistics from
GRID_SEEDS = range(64)  # the latents of every sample grid, those that generate.py draws by default


class Diverged(UserError):
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


class Due(NamedTuple):
    """What is due after a step."""

    log: bool
    grid: bool
    variety: bool  # of the grid, unless only this run, by where it ends, has it
    save: bool
    measure: bool


def what_is_due(config: Config, plan: Plan, step: int, stop: bool) -> Due:
    """Tell what is due after `step`, at which a signal may `stop` the run."""
    epoch, within = divmod(step, plan.steps_per_epoch)
    done = step == plan.total
    save = within == 0 or done or stop
    variety = within == 0 or step % config.sample_every == 0
    grid = save or variety
    log = grid or step % config.log_every == 0
    measure = config.evaluate_every is not None and (
        done or (within == 0 and epoch % config.evaluate_every == 0)
    )
    return Due(log, grid, variety, save, measure)


class Keeper:
    """Keeps what is due of a run, and says how it goes; the first rank has it.

    Args:
        interrupted: gives not 0 when a signal has asked the run to stop.
    """

    def __init__(
        self, config: Config, plan: Plan, players: Players, images: np.ndarray, record: Record,
        best: Best | None, interrupted: Callable[[], int],
    ) -> None:  # fmt: skip
        self.config, self.plan, self.players = config, plan, players
        self.record, self.best, self.interrupted = record, best, interrupted
        self.images = len(images)
        self.real_variety = variety(real_grid(images))
        random = random_at(config.seed, "statistics", 0)
        z = random_latents(random, SETTLING, config.z_dim, config.z_dist)
        self.latents = to_device(z, next(players.generator.parameters()).device)
        self.referee = Referee(LOSSES[config.loss], record.entries())
        self.advised = -1  # the beginning of the last stretch that was advised on
        self.logged = plan.start
        if best and plan.start:
            best.recall()
            self.catch_up()
        self.began = self.clock = time.perf_counter()

    def catch_up(self) -> None:
        """Measure what a signal left unmeasured when it stopped the run that this one goes on."""
        step, name = self.plan.start, self.best.network.frechet
        known = any(name in entry for entry in self.record.entries() if entry["step"] == step)
        if what_is_due(self.config, self.plan, step, stop=False).measure and not known:
            measured = self.measure(step, copy_states(self.players, step))
            if measured:
                epoch = round(step / self.plan.steps_per_epoch, 4)
                self.record.later(self.record.log, {"step": step, "epoch": epoch, **measured})

    def keep(self, step: int, due: Due, values: dict[str, float], bar: tqdm) -> bool:
        """Keep what is `due` after `step`, which gave `values`; tell if the run is to end here.

        Raises:
            Diverged: a value or a weight is not finite, of which nothing is written then.
        """
        record = self.record
        now = time.perf_counter()
        taken = (step - self.logged) * self.plan.batch_size
        values["images_per_second"] = round(taken / (now - self.clock), 1)
        self.logged = step

        # All that may find numbers that are not finite comes before the first write.
        if due.grid:
            self.settle()
        grid = self.draw_grid(step) if due.grid else None
        if due.variety and self.real_variety:
            values["variety"] = round(variety(grid) / self.real_variety, 4)
        entry = {"step": step, "epoch": round(step / self.plan.steps_per_epoch, 4), **values}
        self.referee.see(entry)
        state = self.referee.state
        entry |= {"game": state, "game_since": self.referee.since}
        ends = due.grid and state == COLLAPSED and self.config.on_collapse == "stop"
        contents = copy_states(self.players, step) if due.save or ends else {}
        measured = self.measure(step, contents) if due.measure else {}

        shown = {name: f"{value:.3g}" for name, value in (values | measured).items()}
        bar.set_postfix({**shown, "game": self.referee.words(step)})
        record.later(record.log, entry | measured)
        if due.grid:
            record.later(record.draw, f"step_{step:07d}", grid, step)
        if contents:
            self.save(step, contents)
            left = (now - self.began) / (step - self.plan.start) * (self.plan.total - step)
            bar.write(self.progress(step, values | measured, left))
        self.advise(step)
        self.clock = time.perf_counter() if due.measure else now
        return ends

    def advise(self, step: int, at_once: bool = False) -> None:
        """Say what to do when the game has gone badly for long, once for every such stretch."""
        referee = self.referee
        long = at_once or referee.state == COLLAPSED or step - referee.since >= PATIENCE
        if referee.advice() and long and referee.since != self.advised:
            warn(f"step {step:,}: {referee.words(step)}; {referee.advice()}")
            self.advised = referee.since

    def conclude(self, step: int) -> None:
        """Say how the run went, and which checkpoint is its best."""
        self.advise(step, at_once=True)
        best = self.best
        if best and best.step:
            print(
                f"best: step {best.step:,}, {best.network.frechet} {best.value:.1f} "
                f"(floor {best.floor:.1f}), {best.path}"
            )

    def settle(self) -> None:
        """Return the average's batch norm the statistics of the images that it draws itself.

        They follow from its weights alone, whenever they are taken.
        """
        recalibrate(self.players.generator_ema, self.latents.split(GENERATE_BATCH))

    def draw_grid(self, step: int) -> np.ndarray:
        """Draw the images (64, H, W, C) uint8 of the sample grid."""
        z = sample_latents(GRID_SEEDS, self.config.z_dim, self.config.z_dist)
        grid = generate(self.players.generator_ema, z)
        if not grid.isfinite().all():
            raise Diverged(step)
        return to_image(grid)

    def measure(self, step: int, contents: Mapping[str, Any]) -> dict[str, float]:
        """Measure the generator, and keep `contents` as best.pth if it is; unless interrupted."""
        best = self.best
        value = best.measure(self.players.generator_ema, self.interrupted)
        if value is None:
            if step == self.plan.total:  # from which no run may ever go on
                warn(f"step {step:,}, the last, was not measured; evaluate.py can do so")
            return {}
        if not math.isfinite(value):
            raise Diverged(step)
        if value <= best.value:
            best.value, best.step = value, step
            contents = self.described(step, contents) | {"best": {"value": value, **best.about}}
            self.record.later(checkpoint.save, best.path, contents)
        return {best.network.frechet: round(value, 4)}

    def described(self, step: int, contents: Mapping[str, Any]) -> dict[str, Any]:
        """Return the `contents` of a checkpoint with what stands beside states."""
        about = {"config": asdict(self.config), "epoch": step // self.plan.steps_per_epoch}
        return {**about, "step": step, "pictures": self.images, **contents}

    def save(self, step: int, contents: Mapping[str, Any]) -> None:
        """Put off to write what is kept of a run at an epoch's end, or at its own.

        When it has all its steps, its last checkpoint comes last, as with it a run counts as done.
        """
        config, record = self.config, self.record
        epoch, within = divmod(step, self.plan.steps_per_epoch)
        contents = self.described(step, contents)
        last = Path(config.checkpoint_dir, config.name, "last.pth")
        is_numbered = within == 0 and epoch % config.save_every == 0
        is_done = step == self.plan.total
        if not is_done:
            record.later(checkpoint.save, last, contents)
        if is_numbered:
            record.later(checkpoint.save, last.with_name(f"epoch_{epoch:04d}.pth"), contents)
            record.later(prune, last.parent, config.keep, epoch)
        if is_numbered or is_done or within:  # within an epoch the run stops
            record.later(record.plot)
        if is_done:
            record.later(record.animate)
            record.later(checkpoint.save, last, contents)

    def progress(self, step: int, values: Mapping[str, float], left: float) -> str:
        """Say in a line how far the run is, and how it goes; `left` in seconds."""
        names = [*METRICS, *([self.best.network.frechet] if self.best else [])]
        shown = "  ".join(f"{name} {values[name]:.3f}" for name in names if name in values)
        return (
            f"epoch {step / self.plan.steps_per_epoch:.4g}  step {step:,}/{self.plan.total:,}  "
            f"{shown}  {values['images_per_second']:,.0f} images/s  "
            f"{self.referee.words(step)}  {tqdm.format_interval(left)} left"
        )


def copy_states(players: Players, step: int) -> dict[str, Any]:
    """Copy the state of networks and optimizers, to be written while training goes on.

    Raises:
        Diverged: a weight, a statistic or a moment of Adam's is not finite.
    """
    states = {name: player.state_dict() for name, player in players._asdict().items()}
    if not all(bool(x.isfinite().all()) for x in tensors_in(states)):
        raise Diverged(step)
    return copy.deepcopy(states)
