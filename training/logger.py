"""What a run keeps on disk: its checkpoints, its log and its images."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from PIL import Image

from config import Config
from preprocessing.decode import to_channels
from serialization import checkpoint
from serialization.checkpoint import CheckpointError
from training import distributed
from utils import append_line, atomic_write, make_grid, remove_temporaries, warn, write_settings
from visualization.animation import write_animation

REAL = 64  # images of the grid of real ones
AHEAD = 8  # pieces of work that may wait to be done


def prune(folder: Path, keep: int, epoch: int) -> None:
    """Delete all but `keep` numbered checkpoints, after that of `epoch` was written.

    Those of higher epochs go first: images have come to the set since, and epochs got longer.
    """
    paths = checkpoint.numbered(folder)
    paths.sort(key=lambda path: checkpoint.epoch_of(path) <= epoch)
    for path in paths[:-keep]:
        path.unlink()


def set_aside(folder: Path) -> None:
    """Rename a folder that an earlier run left logs or checkpoints in, so that none is lost."""
    if (folder / "log.jsonl").exists() or any(folder.glob("*.pth")):
        number = next(n for n in itertools.count(1) if not Path(f"{folder}.{n}").exists())
        folder.rename(f"{folder}.{number}")
        print(f"{folder} had files of an earlier run; they are now in {folder}.{number}")


def real_grid(images: np.ndarray) -> np.ndarray:
    """Return at most `REAL` of the real images, taken evenly."""
    return images[:: -(-len(images) // REAL)]


@contextlib.contextmanager
def open_record(
    config: Config, start: int, source: Path | None, images: np.ndarray
) -> Iterator[Record | None]:
    """Make a run's folders and its record, with the real `images`; the first rank alone has it.

    Args:
        start, source: the step and the checkpoint that the run goes on from.

    Raises:
        CheckpointError: another process is writing this run.
    """
    if distributed.rank() > 0:
        yield None
        return
    folder, sample_folder = (
        Path(parent, config.name) for parent in (config.checkpoint_dir, config.sample_dir)
    )
    with _alone(folder, sample_folder):
        if source is None or source.parent.resolve() != folder.resolve():
            set_aside(folder)
            set_aside(sample_folder)
        folder.mkdir(exist_ok=True)
        remove_temporaries(folder)
        write_settings(folder / "settings.txt", config)
        with Record(sample_folder, start, config.tensorboard) as record:
            record.draw("real", real_grid(images))
            yield record


@contextlib.contextmanager
def _alone(*folders: Path) -> Iterator[None]:
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
            except NotImplementedError:
                warn(f"{folder}: can't be locked on this disk; start no second run of this name")
        yield


class Record:
    """The log and the images of a run, in a folder of their own.

    Args:
        folder: where to; made if it is not there.
        step: the step that the run goes on from; log lines and grids beyond it are dropped.
        tensorboard: log to TensorBoard too.
    """

    def __init__(self, folder: Path, step: int = 0, tensorboard: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(folder)
        self.folder = folder
        self.log_path = folder / "log.jsonl"
        entries = [entry for entry in self.entries() if entry["step"] <= step]
        for path in self.grids():
            if int(path.stem.removeprefix("step_")) > step:
                path.unlink()
        with atomic_write(self.log_path) as file:
            file.writelines(map(_json_line, entries))
        self.thread = ThreadPoolExecutor(1)
        self.pending: deque[Future[None]] = deque()
        self.warned: set[str] = set()
        self.writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # optional

            self.writer = SummaryWriter(folder, purge_step=step + 1)

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *error: object) -> None:
        """Wait until all that was put off is written; training's own error goes first.

        A user who interrupts waits for no more than the file that is being written.
        """
        hurried = isinstance(error[1], KeyboardInterrupt)
        try:
            while self.pending and error[1] is None:
                self.pending.popleft().result()
        except KeyboardInterrupt:
            hurried = True
            raise
        finally:
            self.thread.shutdown(wait=not hurried, cancel_futures=hurried)
            self.tell_tensorboard("close")  # which would keep its last minutes to itself

    def later(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do `work` in a thread, after what was put off before it, while training goes on.

        A file that can't be written, as on a full disk, is warned of once, until the run ends.
        Waits if too much is behind.
        """
        while self.pending and (self.pending[0].done() or len(self.pending) >= AHEAD):
            try:
                self.pending.popleft().result()
            except OSError as error:
                problem = f"{error.filename or self.folder}: {error.strerror}"
                if problem not in self.warned:
                    warn(f"{problem}; training goes on")
                self.warned.add(problem)
        self.pending.append(self.thread.submit(work, *arguments))

    def entries(self) -> list[dict[str, Any]]:
        """Read the log, one JSON object a line, oldest first; a line cut by a crash is left out."""
        entries = []
        if self.log_path.exists():
            for line in self.log_path.read_text("utf-8", "replace").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    entries.append(json.loads(line))
        return [entry for entry in entries if isinstance(entry, dict) and "step" in entry]

    def grids(self) -> list[Path]:
        """Return the sample grids, oldest first."""
        names = (p for p in self.folder.iterdir() if re.fullmatch(r"step_\d+\.png", p.name))
        return sorted(names, key=lambda path: int(path.stem.removeprefix("step_")))

    def log(self, entry: Mapping[str, Any]) -> None:
        """Add a line to log.jsonl; `entry` has the step among its values."""
        append_line(self.log_path, _json_line(entry))
        for name, value in entry.items():
            if name != "step" and not isinstance(value, str):
                self.tell_tensorboard("add_scalar", name, value, entry["step"])

    def draw(self, name: str, images: np.ndarray, step: int = 0) -> None:
        """Write images (N, H, W, C) uint8 as the grid `name`.png."""
        grid = make_grid(images)
        with atomic_write(self.folder / f"{name}.png") as file:
            grid.save(file, "PNG")
        pixels = np.atleast_3d(np.asarray(grid))
        self.tell_tensorboard("add_image", name.split("_")[0], pixels, step, dataformats="HWC")

    def tell_tensorboard(self, method: str, *arguments: Any, **named: Any) -> None:
        """Call a method of TensorBoard's writer, which takes no more after a disk that was full."""
        try:
            if self.writer:
                getattr(self.writer, method)(*arguments, **named)
        except OSError as error:
            self.writer = None
            warn(f"{self.folder}: {error.strerror}; TensorBoard gets no more, training goes on")

    def plot(self) -> None:
        """Write losses.png from the log, if that is still there."""
        plot_log(self.folder / "losses.png", self.entries())

    def animate(self) -> None:
        """Write training.webp from the grids step_*.png, if there are any left."""
        animate_files(self.folder / "training.webp", self.grids())


def _json_line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def animate_files(path: Path, frames: Sequence[Path], seconds: float = 8.0) -> None:
    """Write image files as one that loops in `seconds`, evenly thinned to 100 frames at most.

    Writes nothing where there are none that can be read.
    """
    taken = np.linspace(0, len(frames) - 1, min(len(frames), 100)).round().astype(int)
    images = []
    for i in taken:
        try:
            images.append(to_channels(Image.open(frames[i]), 3).copy())
        except OSError:
            warn(f"{frames[i]} can't be read, and is left out of {path.name}")
    if not images:
        return
    durations = [round(seconds * 1000 / len(images))] * (len(images) - 1) + [2000]
    write_animation(path, images, durations)


def plot_log(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Plot the losses, D(x) and D(G(z)), variety, and the distance from real images if known.

    Writes nothing where none of them is.
    """
    panels = {
        "loss": {"loss_d": "discriminator", "loss_g": "generator"},
        "D's output": {"d_real": "D(x)", "d_fake": "D(G(z))"},
        "variety": {"variety": "of the sample grid, real images' = 1"},
        "frechet": {"frechet": "distance from real images"},
        "FID": {"fid": "distance from real images"},
    }
    logged = {name for entry in entries for name in entry}
    panels = {label: lines for label, lines in panels.items() if logged & lines.keys()}
    if not panels:
        return
    figure = Figure(figsize=(9, 2.6 * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (label, lines) in zip(rows, panels.items(), strict=True):
        for name, legend in lines.items():
            points = [(entry["step"], entry[name]) for entry in entries if name in entry]
            marker = "." if len(points) < 100 else None
            axes.plot(*zip(*points, strict=True), label=legend, linewidth=1, marker=marker)
        axes.set_ylabel(label)
        if label in ("variety", "frechet", "FID"):
            axes.set_ylim(bottom=0)
        axes.legend(loc="upper right")
        axes.grid(alpha=0.3)
    rows[-1].set_xlabel("step")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100)
