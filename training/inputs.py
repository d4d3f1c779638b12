"""The inputs of every training step: real images, flips, latents, augmentation, EMA weight.

Each is a function of the seed, its purpose and the step, so that a resumed run needs no generator
state and a rank takes its slice of one stream. A thread samples them ahead of the steps, many steps
in one block, and a block is copied to a GPU at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset import to_tensor
from models import random_latents
from training.augment import CHANCES
from utils import memory_format, random_at, to_device

BLOCK_STEPS = 64  # at most,
BLOCK_BYTES = 2**25  # and no more than this of images


class Inputs:
    """The inputs of a run's steps on `device`.

    Images (N, H, W, C) uint8 that fit into half of a GPU's free memory are kept there, and a batch
    is read by its rows.

    Args:
        config: a `train.Config`, of which the settings of randomness are read.
        batch_size: images a step, over all ranks.
        shard: the rows of each batch that this rank takes.
    """

    def __init__(
        self, config: Any, images: np.ndarray, batch_size: int, shard: slice, device: torch.device
    ) -> None:
        self.config, self.images, self.batch_size = config, images, batch_size
        self.shard, self.device = shard, device
        self.resident = None
        if device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
            self.resident = torch.from_numpy(images).to(device)

    def steps(self, start: int) -> Iterator[dict[str, Tensor]]:
        """Yield the inputs of every step after `start`, without end.

        "real": (N, H, W, C) uint8, or the rows (N,) of the resident images; "flip": (N,) bool, with
        `mirror`; "z" and, with `fresh_latents`, "z_fresh": (N, Z); "chances": (3, N, 7), with
        `augment`; "ema_weight": the weight of the new parameters, a scalar.
        """
        count = max(1, min(BLOCK_STEPS, BLOCK_BYTES // (self.batch_size * self.images[0].nbytes)))
        if self.resident is not None:
            count = BLOCK_STEPS
        order = self._order(start)
        with ThreadPoolExecutor(1) as thread:
            first, pending = start + 1, deque()
            while True:
                while len(pending) < 2:
                    pending.append(thread.submit(self._sample_block, order, first, count))
                    first += count
                block = pending.popleft().result()
                block = {name: to_device(x, self.device) for name, x in block.items()}
                for i in range(count):
                    yield {name: x[i] for name, x in block.items()}

    def real(self, real: Tensor, flip: Tensor | None = None) -> Tensor:
        """Return a step's real images as (N, C, H, W) in [-1, 1]."""
        if self.resident is not None:
            real = self.resident.index_select(0, real)
        if flip is not None:
            real = torch.where(flip[:, None, None, None], real.flip(2), real)
        x = to_tensor(real)
        return x.contiguous(memory_format=memory_format(self.device))

    def _order(self, start: int) -> Iterator[np.ndarray]:
        """Yield the rows of this rank's images of every step; each epoch is a new permutation.

        The incomplete last batch of an epoch is left out.
        """
        step, count = start, len(self.images)
        while True:
            epoch, index = divmod(step, count // self.batch_size)
            if index == 0 or step == start:
                order = random_at(self.config.seed, "order", epoch).permutation(count)
            yield order[index * self.batch_size : (index + 1) * self.batch_size][self.shard]
            step += 1

    def _sample_block(
        self, order: Iterator[np.ndarray], first: int, count: int
    ) -> dict[str, Tensor]:
        """Sample the inputs of `count` steps, each with the steps as its first dimension."""
        steps = range(first, first + count)
        noise = [step_noise(self.config, step, self.batch_size) for step in steps]
        block = {
            name: torch.stack([x[name][..., self.shard, :] for x in noise]) for name in noise[0]
        }
        rows = np.stack([next(order) for _ in steps])
        block["real"] = torch.from_numpy(rows if self.resident is not None else self.images[rows])
        if self.config.mirror:
            flips = [random_at(self.config.seed, "mirror", step - 1) for step in steps]
            flips = [random.random(self.batch_size)[self.shard] < 0.5 for random in flips]
            block["flip"] = torch.from_numpy(np.stack(flips))
        decays = [ema_decay(self.config.ema, step) for step in steps]
        block["ema_weight"] = torch.tensor([1 - decay for decay in decays], dtype=torch.float32)
        return block


def step_noise(config: Any, step: int, batch_size: int) -> dict[str, Tensor]:
    """Sample the latents and the augmentation of one step, as keyword arguments of `train_step`."""
    noise = {}
    for name, purpose in (("z", "latents"), ("z_fresh", "fresh latents")):
        if name == "z" or config.fresh_latents:
            random = random_at(config.seed, purpose, step)
            noise[name] = random_latents(random, batch_size, config.z_dim, config.z_dist)
    if config.augment:
        random = random_at(config.seed, "augment", step)
        noise["chances"] = torch.from_numpy(random.random((3, batch_size, CHANCES), np.float32))
    return noise


def ema_decay(decay: float, step: int) -> float:
    """Return the EMA's decay at a step: it rises to `decay`, to forget the random start."""
    return min(decay, step / (step + 9))
