"""What a run keeps on disk: which checkpoint it goes on from, its log and its pictures."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import atomic
import checkpoint
from checkpoint import CheckpointError
from config import Config
from dataset import make_grid, run_name
from pictures import to_channels
from sources import NAMED_SETS
from utils import warn

NEEDED = {  # of a checkpoint, to go on from it
    "config": dict, "epoch": int, "step": int, "pictures": int, "generator": dict,
    "discriminator": dict, "optimizer_g": dict, "optimizer_d": dict,
    "generator_ema": dict,
}  # fmt: skip
AHEAD = 8  # pieces of work that may wait to be done


def find_run(config: Config) -> tuple[Config, dict[str, Any] | None]:
    """Settle a run's name and settings, and read the checkpoint that it goes on from, if any.

    `config.given` says which settings the user named. The checkpoint comes with its own place as
    "path".

    Raises:
        CheckpointError: the run exists and is not resumed, or it was made with other settings.
    """
    name = config.name or run_name(config.data)
    own = Path(config.checkpoint_dir, name, "last.pth")
    anew = replace(config, name=name, resume=None)
    if config.resume is None:
        if own.exists():
            raise CheckpointError(f"{own} exists: add --resume to go on, or --name for a new run")
        return anew, None
    is_file = config.resume != "last"
    if is_file:
        saved, moved = read(config.resume), {}
    elif own.exists() or any(own.parent.glob("epoch_*.pth")):
        saved, moved = newest_whole(own), {"name": name, "checkpoint_dir": config.checkpoint_dir}
    else:
        print(f"Nothing is saved as {own} yet: starting anew")
        return anew, None

    source = saved["path"]
    config = replace(merge(config, saved["config"], source), resume=None, **moved)
    own = Path(config.checkpoint_dir, config.name, "last.pth")
    if is_file and own.exists() and not own.samefile(source):
        raise CheckpointError(f"{own} exists: add --name for a new run that goes on from {source}")
    return config, saved


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that a run can go on from, with its own place as "path".

    Raises:
        CheckpointError: it can't be read, or has not all that a run needs.
    """
    contents = checkpoint.load(path)
    for name, kind in NEEDED.items():
        if not isinstance(contents.get(name), kind):
            raise CheckpointError(
                f"{path} can't be trained further: it has no {name} to go on with"
            )
    return contents | {"path": Path(path)}


def newest_whole(last: Path) -> dict[str, Any]:
    """Read `last`, or if it is damaged the newest numbered checkpoint beside it that is not.

    Raises:
        CheckpointError: none of them can be used.
    """
    problems = []
    for path in (last, *reversed(numbered(last.parent))):
        try:
            saved = read(path)
        except CheckpointError as error:
            problems.append(error)
            continue
        for problem in problems:
            warn(f"{problem}; going on from {path}")
        return saved
    raise problems[0]


def merge(config: Config, stored: dict[str, Any], source: Path) -> Config:
    """Take what `config` was given over what is `stored`, and refuse what can't change midway."""
    unknown = stored.keys() - {field.name for field in fields(config)}
    if unknown:
        raise CheckpointError(f"{source} is of another version; it has {', '.join(unknown)}")
    given = {name: getattr(config, name) for name in config.given}
    for field in fields(config):
        name = field.name
        if name not in given or field.metadata["may_change"]:
            continue
        old, new = stored.get(name, field.default), given[name]
        if old == new or (name == "data" and _same_data(old, new)):
            continue
        raise CheckpointError(
            f"--{name} {new}: {source} was trained with {old}; leave the flag out, or start a new "
            "run with another --name and without --resume"
        )
    if "epochs" in given:
        given = {"steps": None, **given}  # the new bound, not the one that the run had
    return Config(**stored | given)


def _same_data(old: str, new: str) -> bool:
    """Tell whether `new` is `old`, written otherwise, or where it may have been moved to."""
    moved = old not in NAMED_SETS and not Path(old).exists()
    return moved or Path(old).resolve() == Path(new).resolve()


def numbered(folder: Path) -> list[Path]:
    """Give a run's numbered checkpoints, those written last at the end."""
    paths = [path for path in folder.iterdir() if re.fullmatch(r"epoch_\d+\.pth", path.name)]
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` numbered checkpoints written last."""
    for path in numbered(folder)[:-keep]:
        path.unlink()


def set_aside(folder: Path) -> None:
    """Rename a folder that an earlier run left logs or checkpoints in, so that none is lost."""
    if (folder / "log.jsonl").exists() or any(folder.glob("epoch_*.pth")):
        number = next(n for n in itertools.count(1) if not Path(f"{folder}.{n}").exists())
        folder.rename(f"{folder}.{number}")
        print(f"{folder} had files of an earlier run; they are now in {folder}.{number}")


class Record:
    """The log and the pictures of a run, in a folder of their own.

    Args:
        folder: where to; made if it is not there.
        step: the step that the run goes on from; log lines and grids beyond it are dropped.
        tensorboard: log to TensorBoard too.
    """

    def __init__(self, folder: Path, step: int = 0, tensorboard: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.sweep(folder)
        self.folder = folder
        self.log_path = folder / "log.jsonl"
        entries = [entry for entry in self.entries() if entry["step"] <= step]
        for path in self.grids():
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()
        with atomic.writing(self.log_path) as file:
            file.writelines(map(_json_line, entries))
        self.thread = ThreadPoolExecutor(1)
        self.pending: deque[Future[None]] = deque()
        self.writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # optional

            self.writer = SummaryWriter(folder, purge_step=step + 1)

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *error: object) -> None:
        """Wait until all that was put off is written; training's own error goes first."""
        with self.thread:
            while self.pending and error[0] is None:
                self.pending.popleft().result()

    def later(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do `work` in a thread, after what was put off before it, while training goes on.

        A file that can't be written, as on a full disk, is warned of, until the run ends. Waits
        if too much is behind.
        """
        while self.pending and (self.pending[0].done() or len(self.pending) >= AHEAD):
            try:
                self.pending.popleft().result()
            except OSError as error:
                warn(f"{error.filename or self.folder}: {error.strerror}; training goes on")
        self.pending.append(self.thread.submit(work, *arguments))

    def entries(self) -> list[dict[str, float]]:
        """Read the log, one JSON object a line, oldest first; a line cut by a crash is left out."""
        entries = []
        if self.log_path.exists():
            for line in self.log_path.read_text("utf-8", "replace").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    entries.append(json.loads(line))
        return entries

    def grids(self) -> list[Path]:
        """Give the sample grids, oldest first."""
        names = (path for path in self.folder.iterdir() if re.fullmatch(r"step_\d+", path.stem))
        return sorted(names, key=lambda path: int(path.stem.removeprefix("step_")))

    def log(self, entry: Mapping[str, float]) -> None:
        """Add a line to log.jsonl; `entry` has the step among its values."""
        line = _json_line(entry)
        with open(self.log_path, "ab", buffering=0) as file:
            end = file.tell()
            if file.write(line) < len(line):  # the disk is full; the next line must not join it
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.log_path))
        if self.writer:
            for name in entry.keys() - {"step"}:
                self.writer.add_scalar(name, entry[name], entry["step"])

    def draw(self, name: str, images: np.ndarray, step: int = 0) -> None:
        """Write images (N, H, W, C) uint8 as the grid `name`.png."""
        grid = make_grid(images)
        with atomic.writing(self.folder / f"{name}.png") as file:
            grid.save(file, "PNG")
        if self.writer:
            pixels = np.atleast_3d(np.asarray(grid))
            self.writer.add_image(name.split("_")[0], pixels, step, dataformats="HWC")

    def plot(self) -> None:
        """Write losses.png from the log."""
        plot_log(self.folder / "losses.png", self.entries())
        if self.writer:
            self.writer.flush()

    def animate(self) -> None:
        """Write training.webp from the grids step_*.png."""
        write_animation(self.folder / "training.webp", self.grids())


def _json_line(entry: Mapping[str, float]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def write_animation(path: Path, frames: Sequence[Path], seconds: float = 8.0) -> None:
    """Write picture files as a WebP that loops in `seconds`, evenly thinned to 100 frames at most.

    WebP because a GIF of the same grids has 256 colours, and takes three times the space.
    """
    taken = np.linspace(0, len(frames) - 1, min(len(frames), 100)).round().astype(int)
    pictures = [to_channels(Image.open(frames[i]), 3) for i in taken]
    durations = [round(seconds * 1000 / len(pictures))] * (len(pictures) - 1) + [2000]
    with atomic.writing(path) as file:
        pictures[0].save(
            file, "WEBP", save_all=True, append_images=pictures[1:], duration=durations, loop=0,
            quality=80, method=0,
        )  # fmt: skip


def plot_log(path: Path, entries: Sequence[Mapping[str, float]]) -> None:
    """Plot the losses, and D(x) and D(G(z)), over the steps."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    for axes, label, lines in (
        (top, "loss", {"loss_d": "discriminator", "loss_g": "generator"}),
        (bottom, "D's output", {"d_real": "D(x)", "d_fake": "D(G(z))"}),
    ):
        for name, legend in lines.items():
            values = [entry[name] for entry in entries]
            axes.plot([entry["step"] for entry in entries], values, label=legend, linewidth=1)
        axes.set_ylabel(label)
        axes.legend(loc="upper right")
        axes.grid(alpha=0.3)
    bottom.set_xlabel("step")
    with atomic.writing(path) as file:
        figure.savefig(file, format="png", dpi=100)
