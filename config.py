"""Every setting of a training run: declared once, for command line, notebook and checkpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dataset import parse_size
from preprocessing.sources import NAMED_SETS
from utils import SettingsError, check_settings, setting


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of a run. Section numbers are those of arXiv 1511.06434.

    Raises:
        SettingsError, DataError: a value out of its range or choices.
    """

    data: str = setting("data", "digits", "a folder, a .zip, or a set: " + ", ".join(NAMED_SETS))
    download_dir: str = setting("data", "data", "folder of downloaded sets", may_change=True)
    cache_dir: str = setting(
        "data", "cache", "folder of decoded images, read from then on", may_change=True
    )
    clear_cache: bool = setting("data", False, "delete all decoded images first", may_change=True)
    image_size: str | None = setting(
        "data", None, "in pixels, 64 or 64x96 (height x width)", shown="64, or the set's own"
    )
    channels: int | None = setting(
        "data", None, "1 grey, 3 colour, 4 with alpha", shown="found", choices=(1, 3, 4)
    )
    mirror: bool = setting("data", False, "flip half of the images left to right")

    z_dim: int = setting("networks", 100, "dimensions of z (fig. 1)", minimum=1)
    z_dist: str = setting(
        "networks", "normal", "z from N(0, 1) or U(-1, 1)", choices=("normal", "uniform")
    )
    features: int = setting(
        "networks", 64, "channels of the largest maps; 128 is the paper's", minimum=1
    )
    max_features: int = setting("networks", 1024, "upper bound of any map's channels", minimum=1)
    norm: str = setting("networks", "batch", "normalisation (sec. 3)", choices=("batch", "none"))
    sync_bn: bool = setting(
        "networks", False, "batch norm over all GPUs' images, not each one's", may_change=True
    )
    activation: str = setting(
        "networks", "relu", "of the generator (sec. 3)", choices=("relu", "leaky_relu")
    )

    loss: str = setting(
        "game", "bce", "what the players minimise", choices=("bce", "minimax", "lsgan", "hinge")
    )
    batch_size: int = setting("game", 128, "images a step (sec. 4)", minimum=1)
    learning_rate: float = setting("game", 0.0002, "Adam's, of both networks (sec. 4)", minimum=0)
    learning_rate_g: float | None = setting(
        "game", None, "the generator's own", shown="learning_rate", minimum=0
    )
    learning_rate_d: float | None = setting(
        "game", None, "the discriminator's own", shown="learning_rate", minimum=0
    )
    beta1: float = setting("game", 0.5, "Adam's (sec. 4)", minimum=0, below=1)
    beta2: float = setting("game", 0.999, "Adam's", minimum=0, below=1)
    fresh_latents: bool = setting("game", False, "new latents for the generator's half of a step")

    ema: float = setting(
        "game", 0.999, "decay of the generator's average, which draws; 0: none", minimum=0, below=1
    )
    augment: bool = setting(
        "game", False, "show D all images changed in colour and place, with holes (small sets)"
    )

    epochs: int = setting("run", 40, "times to see each image", minimum=1, may_change=True)
    steps: int | None = setting(
        "run", None, "steps in all; wins over epochs", shown="none", minimum=1, may_change=True
    )
    seed: int = setting("run", 0, "of weights, order, latents and flips", minimum=0, below=2**63)
    device: str = setting(
        "run", "auto", "cpu, cuda, cuda:1, mps; auto: cuda or cpu", may_change=True
    )
    precision: str = setting(
        "run", "auto", "of the layers; auto: bf16 where it is fast",
        choices=("auto", "fp32", "bf16"), may_change=True,
    )  # fmt: skip
    resume: str | None = setting(
        "run", None, "go on from the run's last checkpoint, or from a file", bare="last",
        shown="none", may_change=True,
    )  # fmt: skip

    evaluate_every: int | None = setting(
        "run", None, "epochs between measurements, the best of which keeps its checkpoint",
        shown="never", minimum=1, may_change=True,
    )  # fmt: skip
    feature_network: str = setting(
        "run", "efficientnet", "that measures, see evaluate.py",
        choices=("efficientnet", "inception"), may_change=True,
    )  # fmt: skip
    on_collapse: str = setting(
        "run", "go_on", "when all images are alike", choices=("go_on", "stop"), may_change=True
    )

    name: str | None = setting(
        "files", None, "of the run and its folders", shown="from data", may_change=True
    )
    checkpoint_dir: str = setting(
        "files", "checkpoints", "folder of all runs' checkpoints", may_change=True
    )
    sample_dir: str = setting(
        "files", "samples", "folder of all runs' images and logs", may_change=True
    )
    save_every: int = setting(
        "files", 3, "epochs between numbered checkpoints", minimum=1, may_change=True
    )
    keep: int = setting("files", 5, "numbered checkpoints to keep", minimum=1, may_change=True)
    sample_every: int = setting(
        "files", 500, "steps between sample grids, beside every epoch's", minimum=1, may_change=True
    )
    log_every: int = setting("files", 10, "steps between log lines", minimum=1, may_change=True)
    tensorboard: bool = setting("files", False, "log to TensorBoard too", may_change=True)

    def __new__(cls, **given: Any) -> Config:
        """Note which settings were named: on --resume, the others come from the checkpoint."""
        self = super().__new__(cls)
        object.__setattr__(self, "given", frozenset(given))
        return self

    def __post_init__(self) -> None:
        if self.image_size is not None:
            height, width = parse_size(self.image_size)
            canonical = f"{height}" if height == width else f"{height}x{width}"
            object.__setattr__(self, "image_size", canonical)
        check_settings(self)
        if self.name is not None and not re.fullmatch(r"[^/\\:]{0,99}[^/\\:.]", self.name):
            raise SettingsError(f"--name {self.name}: must be the name of a folder, not a path")
