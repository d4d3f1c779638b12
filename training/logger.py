"""The files of a run: its log, sample grids and checkpoints; and the lines that it prints."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from serialization import checkpoint
from serialization.checkpoint import CheckpointError
from training.monitor import Monitor, variety
from training.plots import animate, plot_log
from utils import (
    UNSUPPORTED,
    UserError,
    append_line,
    atomic_write,
    evenly_spaced,
    make_grid,
    remove_temporaries,
    warn,
    write_settings,
)

REAL_IMAGES = 64  # in real.png
MAX_PENDING = 8  # writes that may wait before the loop does


class Diverged(UserError):
    """A run whose losses or weights are no longer finite."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"step {step:,} gave numbers that are not finite, of which nothing was written; "
            "--resume goes back to the last checkpoint, a lower --learning_rate starts a new run"
        )


@contextlib.contextmanager
def open_logger(
    config: Any,
    schedule: Any,
    source: Path | None,
    images: np.ndarray,
    outputs: tuple[float, float],
) -> Iterator[Logger]:
    """Make the folders of a run, which no other process can write meanwhile, and yield its logger.

    Args:
        config, schedule: the run's `train.Config` and `training.setup.Schedule`.
        source: the checkpoint that the run goes on from.
        images: the real ones, (N, H, W, C) uint8.
        outputs: of a discriminator that is sure, see `train.Loss`.

    Raises:
        CheckpointError: another process is writing this run.
    """
    folder, sample_folder = (
        Path(parent, config.name) for parent in (config.checkpoint_dir, config.sample_dir)
    )
    with _locked(folder, sample_folder):
        if source is None or source.parent.resolve() != folder.resolve():
            set_aside(folder)
            set_aside(sample_folder)
        for each in (folder, sample_folder):
            each.mkdir(exist_ok=True)
            remove_temporaries(each)
        write_settings(folder / "settings.txt", config)
        with Logger(config, schedule, images, outputs) as logger:
            yield logger


class Logger:
    """Writes what the training loop gives it, in a thread, while training goes on.

    A file that cannot be written, as on a full disk, is a warning. Log lines and grids of steps
    that the run has yet to play, left by a crash, are dropped.
    """

    def __init__(
        self, config: Any, schedule: Any, images: np.ndarray, outputs: tuple[float, float]
    ) -> None:
        self.config, self.schedule, self.count = config, schedule, len(images)
        self.folder = Path(config.sample_dir, config.name)
        self.log_path = self.folder / "log.jsonl"
        entries = [entry for entry in read_log(self.log_path) if entry["step"] <= schedule.start]
        with atomic_write(self.log_path) as file:
            file.writelines(map(_json_line, entries))
        for path in sample_grids(self.folder):
            if _step_of(path) > schedule.start:
                path.unlink()
        self.monitor = Monitor(outputs, entries)
        self.logged = schedule.start  # the last step logged
        self.began = self.clock = time.perf_counter()
        self.tensorboard = None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # optional

            self.tensorboard = SummaryWriter(self.folder, purge_step=schedule.start + 1)
        self.thread = ThreadPoolExecutor(1)
        self.pending: deque[Future[None]] = deque()
        self.warned: set[str] = set()
        real = images[evenly_spaced(len(images), REAL_IMAGES)]
        self.real_variety = variety(real)
        self._later(self._write_grid, "real", real, 0)

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *error: object) -> None:
        """Wait until all is written; a user who interrupts waits for the file at hand only."""
        hurried = isinstance(error[1], KeyboardInterrupt)
        try:
            while self.pending and error[1] is None:
                self.pending.popleft().result()
        except KeyboardInterrupt:
            hurried = True
            raise
        finally:
            self.thread.shutdown(wait=not hurried, cancel_futures=hurried)
            self._tell_tensorboard("close")  # which would keep its last minutes to itself

    def log(self, step: int, values: Mapping[str, float], bar: tqdm) -> None:
        """Log the values of a step, its speed and the state of the game, and warn if it is bad."""
        now = time.perf_counter()
        speed = (step - self.logged) * self.schedule.batch_size / (now - self.clock)
        self.logged, self.clock = step, now
        values = {**values, "images_per_second": round(speed, 1)}
        self.monitor.see({"step": step, **values})
        shown = {name: f"{value:.3g}" for name, value in values.items()}
        bar.set_postfix({**shown, "game": self.monitor.words(step)})
        self.values = values
        game = {"game": self.monitor.state, "game_since": self.monitor.since}
        self._log_entry(step, {**values, **game})
        self.advise(step)

    def log_distance(
        self, step: int, best: Any, value: float | None, states: Mapping[str, Any], bar: tqdm
    ) -> None:
        """Log a distance from the real images, in a line of its own; save best.pth if it is least.

        None means that a signal has ended the measurement.
        """
        self.clock = time.perf_counter()  # measuring is not training
        name = best.network.frechet
        if value is None:
            warn(f"step {step:,} was not measured: a signal came; evaluate.py can measure last.pth")
            return
        self._log_entry(step, {name: round(value, 4)})
        bar.write(f"step {step:,}: {name} {value:.1f} (floor {best.floor:.1f})")
        if best.step == step:
            contents = {**self._contents(step, states), "best": {"value": value, **best.about}}
            self._later(checkpoint.save, best.path, contents)

    def write_grid(self, step: int, images: np.ndarray) -> float:
        """Write the sample grid, (N, H, W, C) uint8; return its variety, as a share of the real."""
        self._later(self._write_grid, f"step_{step:07d}", images, step)
        return round(variety(images) / self.real_variety, 4) if self.real_variety else 0.0

    def save(self, step: int, states: Mapping[str, Any], bar: tqdm) -> None:
        """Save last.pth, every few epochs a numbered checkpoint too, and the plots; print a line.

        When a run has all its steps, last.pth is written last: with it the run counts as done.
        """
        folder = Path(self.config.checkpoint_dir, self.config.name)
        contents = self._contents(step, states)
        epoch, within = divmod(step, self.schedule.steps_per_epoch)
        numbered = within == 0 and epoch % self.config.save_every == 0
        done = step == self.schedule.total
        if not done:
            self._later(checkpoint.save, folder / "last.pth", contents)
        if numbered:
            self._later(checkpoint.save, folder / f"epoch_{epoch:04d}.pth", contents)
            self._later(prune, folder, self.config.keep, epoch)
        if numbered or done or within:
            self._later(lambda: plot_log(self.folder / "losses.png", read_log(self.log_path)))
        if done:
            self._later(lambda: animate(self.folder / "training.webp", sample_grids(self.folder)))
            self._later(checkpoint.save, folder / "last.pth", contents)
        bar.write(self._progress(step))

    def advise(self, step: int, at_once: bool = False) -> None:
        """Warn with what to do about a game that has gone badly for long, or does at the end."""
        advice = self.monitor.advice(step, at_once)
        if advice:
            warn(f"step {step:,}: {self.monitor.words(step)}; {advice}")

    def _contents(self, step: int, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a checkpoint holds, see serialization/checkpoint.py."""
        about = {"config": asdict(self.config), "epoch": step // self.schedule.steps_per_epoch}
        return {**about, "step": step, "pictures": self.count, **states}

    def _progress(self, step: int) -> str:
        """Return one line on how far the run is and how it goes."""
        done = (step - self.schedule.start) / (self.schedule.total - self.schedule.start)
        left = (time.perf_counter() - self.began) * (1 / done - 1)
        names = ("loss_d", "loss_g", "d_real", "d_fake")
        shown = "  ".join(f"{name} {self.values[name]:.3f}" for name in names)
        return (
            f"epoch {self._epoch(step):.4g}  step {step:,}/{self.schedule.total:,}  {shown}  "
            f"{self.values['images_per_second']:,.0f} images/s  {self.monitor.words(step)}  "
            f"{tqdm.format_interval(left)} left"
        )

    def _epoch(self, step: int) -> float:
        return round(step / self.schedule.steps_per_epoch, 4)

    def _later(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do `work` in the thread, after what was put off before it; wait if much is pending."""
        while self.pending and (self.pending[0].done() or len(self.pending) >= MAX_PENDING):
            try:
                self.pending.popleft().result()
            except OSError as error:
                problem = f"{error.filename or self.folder}: {error.strerror}"
                if problem not in self.warned:
                    warn(f"{problem}; training goes on")
                self.warned.add(problem)
        self.pending.append(self.thread.submit(work, *arguments))

    def _log_entry(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a line to log.jsonl."""
        entry = {"step": step, "epoch": self._epoch(step), **values}
        self._later(append_line, self.log_path, _json_line(entry))
        for name, value in values.items():
            if not isinstance(value, str):
                self._later(self._tell_tensorboard, "add_scalar", name, value, step)

    def _write_grid(self, name: str, images: np.ndarray, step: int) -> None:
        grid = make_grid(images)
        with atomic_write(self.folder / f"{name}.png") as file:
            grid.save(file, "PNG")
        pixels = np.atleast_3d(np.asarray(grid))
        self._tell_tensorboard("add_image", name.split("_")[0], pixels, step, dataformats="HWC")

    def _tell_tensorboard(self, method: str, *arguments: Any, **named: Any) -> None:
        """Call a method of TensorBoard's writer, which takes no more after a disk that was full."""
        try:
            if self.tensorboard:
                getattr(self.tensorboard, method)(*arguments, **named)
        except OSError as error:
            self.tensorboard = None
            warn(f"{self.folder}: {error.strerror}; TensorBoard gets no more, training goes on")


def copy_states(gan: Any, step: int) -> dict[str, Any]:
    """Copy the states of a `train.GAN`, to be saved while training goes on.

    Raises:
        Diverged: a weight, a statistic or a moment of Adam's is not finite.
    """
    states = {name: part.state_dict() for name, part in gan._asdict().items()}
    states = {name: state for name, state in states.items() if state}  # scalers only in fp16
    if not torch.stack([x.isfinite().all() for x in tensors_in(states)]).all():
        raise Diverged(step)
    return copy.deepcopy(states)


def tensors_in(state: Any) -> Iterator[Tensor]:
    """Yield the tensors in a nest of dictionaries and lists."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping | list):
        for value in state.values() if isinstance(state, Mapping) else state:
            yield from tensors_in(value)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read log.jsonl, oldest entry first; a line that a crash cut is left out."""
    entries = []
    if path.exists():
        for line in path.read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict) and "step" in entry]


def sample_grids(folder: Path) -> list[Path]:
    """List the sample grids in `folder`, oldest first."""
    return sorted(
        (path for path in folder.iterdir() if re.fullmatch(r"step_\d+\.png", path.name)),
        key=_step_of,
    )


def prune(folder: Path, keep: int, epoch: int) -> None:
    """Delete all but the newest `keep` numbered checkpoints, once that of `epoch` is written.

    Those of higher epochs go first: images have come to the set since, and epochs got longer.
    """
    paths = checkpoint.numbered(folder)
    paths.sort(key=lambda path: checkpoint.epoch_of(path) <= epoch)
    for path in paths[:-keep]:
        path.unlink()


def set_aside(folder: Path) -> None:
    """Rename a folder in which an earlier run left a log or checkpoints, so that none is lost."""
    if (folder / "log.jsonl").exists() or any(folder.glob("*.pth")):
        number = next(n for n in itertools.count(1) if not Path(f"{folder}.{n}").exists())
        folder.rename(f"{folder}.{number}")
        print(f"{folder} had files of an earlier run; they are now in {folder}.{number}")


@contextlib.contextmanager
def _locked(*folders: Path) -> Iterator[None]:
    """Keep other processes from writing the run in `folders`, until this one ends in any way."""
    with contextlib.ExitStack() as stack:
        for folder in {folder.resolve(): folder for folder in folders}.values():
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder.with_name(f".{folder.name}.lock"))
            stack.callback(lock.release)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                problem = f"{folder} is being written by another process"
                raise CheckpointError(f"{problem}: add --name for a run beside it") from None
            except (NotImplementedError, OSError) as error:
                if getattr(error, "errno", None) not in (None, *UNSUPPORTED):
                    raise
                warn(f"{folder}: this disk has no locks: start no second run of this name")
        yield


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _json_line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"
