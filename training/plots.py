"""What a run's log and sample grids show: the curves and the animation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from utils import atomic_write, evenly_spaced, warn
from visualization.figures import write_animation

PANELS = {  # label of the axis: log key: legend
    "loss": {"loss_d": "discriminator", "loss_g": "generator"},
    "D's output": {"d_real": "D(x)", "d_fake": "D(G(z))"},
    "R1": {"r1": "penalty on D's gradient"},
    "variety": {"variety": "of the sample grid, real images' = 1"},
    "frechet": {"frechet": "distance from real images"},
    "FID": {"fid": "distance from real images"},
}


def plot_log(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Plot the curves of a run's log into a PNG, one panel for each kind that it has."""
    logged = {name for entry in entries for name in entry}
    panels = {label: lines for label, lines in PANELS.items() if logged & lines.keys()}
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
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the curves, not on them
        axes.grid(alpha=0.3)
    rows[-1].set_xlabel("step")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100)


def animate(path: Path, grids: Sequence[Path], seconds: float = 8.0) -> None:
    """Write grid files as a WebP that loops in `seconds`, of 100 frames at most.

    Files that cannot be read are left out with a warning.
    """
    frames = []
    for i in evenly_spaced(len(grids), 100):
        try:
            frames.append(Image.open(grids[i]).copy())
        except OSError:
            warn(f"{grids[i]} can't be read, and is left out of {path.name}")
    if frames:
        durations = [round(seconds * 1000 / len(frames))] * (len(frames) - 1) + [2000]
        write_animation(path, frames, durations)
