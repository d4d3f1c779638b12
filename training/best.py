"""The best checkpoint of a run, by the distance of its samples from the real images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from metrics.distances import FEWEST, frechet_distance
from metrics.features import Drawn, extract, load_network, real_features
from preprocessing.sources import DataError
from serialization import checkpoint
from serialization.checkpoint import CheckpointError
from training.logger import Diverged
from utils import random_at, warn

CHUNK = 256  # images, after each of which a signal may end a measurement
COUNT = 2_000  # images generated, and as many real ones: a minute on two cores


class Best:
    """Measures a run's generator, and remembers its least distance.

    The real `images` (N, H, W, C) uint8, the seeds and the distance are those of
    `evaluate.py --num_output`.

    Raises:
        DataError, SettingsError: too few images, or a feature network that is not available.
    """

    def __init__(self, config: Any, images: np.ndarray, device: torch.device) -> None:
        half = min(COUNT, len(images) // 2)
        if half < FEWEST:
            raise DataError(f"--evaluate_every: {len(images)} images are too few to compare")
        self.path = Path(config.checkpoint_dir, config.name, "best.pth")
        self.network = load_network(config.feature_network).to(device)
        self.count = min(COUNT, len(images))
        rows = random_at(0, "evaluate", 0).permutation(len(images))[: max(self.count, 2 * half)]
        folders = config.download_dir, config.cache_dir
        features = real_features(self.network, images, rows, config.data, *folders)
        self.real = features[: self.count]
        self.floor = frechet_distance(features[:half], features[half : 2 * half])
        self.about = {  # stands with the value in best.pth
            "metric": self.network.frechet, "floor": self.floor,
            "network": self.network.title, "count": self.count,
        }  # fmt: skip
        self.value, self.step = float("inf"), 0

    def recall(self) -> None:
        """Read the best measurement of a resumed run from its best.pth, if there is one.

        One that was measured otherwise, by another network or from fewer images, is set aside.
        """
        if not self.path.exists():
            return
        try:
            saved = checkpoint.load(self.path)
        except CheckpointError as error:
            warn(f"{error}; the best is counted from here")
            return
        match saved:
            case {
                "best": {"value": float(value), "floor": float(floor), **about},
                "step": int(step),
            } if (
                {"floor": self.floor, **about} == self.about
                # Another number of threads, or another device, rounds the floor otherwise.
                and math.isclose(floor, self.floor, rel_tol=0.01)
            ):
                self.value, self.step = value, step
            case _:
                names = (self.path.with_name(f"best.{n}.pth") for n in itertools.count(1))
                aside = next(path for path in names if not path.exists())
                self.path.rename(aside)
                warn(f"{self.path} was measured otherwise, and is {aside.name} from here on")

    def measure(self, generator: nn.Module, step: int, stop: Callable[[], int]) -> float | None:
        """Return the distance of the generator's samples; None once `stop` does not return 0.

        Leaves the generator as it was.

        Raises:
            Diverged: the distance is not finite.
        """
        features = []
        for seeds in np.array_split(np.arange(self.count), -(-self.count // CHUNK)):
            if stop():
                return None
            features.append(extract(self.network, Drawn(generator), seeds, "generated images"))
        value = frechet_distance(self.real, torch.cat(features))
        if not math.isfinite(value):
            raise Diverged(step)
        if value <= self.value:
            self.value, self.step = value, step
        return value
