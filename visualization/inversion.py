"""Inversion: the latents whose images come nearest to photos, found by optimisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from dataset import printable
from models import GENERATE_BATCH, random_latents
from preprocessing.decode import decode_all
from preprocessing.sources import DataError, Found, formats
from utils import random_at
from visualization.latents import VARIANCE

CANDIDATES = 256  # latents whose images are compared before the best of them are improved
LEARNING_RATE = 0.2  # Adam's at the first step; it falls to 0 as a cosine does
PRIOR = 0.004  # weight of how unlikely a latent's length is, beside the distance of its image


def read_photos(paths: Sequence[str], image_size: tuple[int, int], channels: int) -> np.ndarray:
    """Load the images of files as for training: uint8 (N, H, W, C), cropped and resized.

    Raises:
        DataError: naming the first file that can't be read, and why.
    """
    photos = []
    for path, decoded in decode_all(Found(paths, _open_photo, "", []), image_size, channels):
        if decoded.pixels is None:
            raise DataError(f"{printable(path)}: {decoded.reason}")
        photos.append(decoded.pixels)
    return np.stack(photos)


def _open_photo(path: str) -> Image.Image:
    return Image.open(path, formats=formats())


def invert(
    generator: nn.Module,
    x: Tensor,
    discriminator: nn.Module | None = None,
    starts: int = 4,
    steps: int = 250,
    seed: int = 0,
) -> Tensor:
    """Find the latents (N, Z) that generate the images nearest to x (N, C, H, W) in [-1, 1].

    Adam improves the best `starts` of `CANDIDATES` random latents of each image in one batch. The
    result, on the CPU, follows from the image and the seed alone. See `distances` for what nearest
    means; `PRIOR` holds latents to the length of those that the generator was trained on.

    Shows the progress, and leaves both networks in eval mode.
    """
    generator.eval()
    if discriminator is not None:
        discriminator.eval()
    device = next(generator.parameters()).device
    count, random = max(CANDIDATES, starts), random_at(seed, "inversion", 0)
    candidates = random_latents(random, count, generator.z_dim, generator.z_dist).to(device)
    found = []
    with tqdm(
        total=len(x) * steps, desc="Inverting", unit="step", disable=None, leave=False
    ) as bar:
        for image in x.to(device).split(1):
            distance = distances(image, discriminator)
            with torch.no_grad():
                batches = candidates.split(GENERATE_BATCH)
                order = torch.cat([distance(generator(z)) for z in batches]).argsort(stable=True)
            found.append(_improve(candidates[order[:starts]], generator, distance, steps, bar))
    return torch.stack(found).cpu()


def distances(image: Tensor, discriminator: nn.Module | None) -> Callable[[Tensor], Tensor]:
    """Return the function from images y (N, C, H, W) to their distances (N,) from one (1, C, H, W).

    That is the mean square of what differs in the pixels. With a discriminator, the same of each
    of its feature maps is added, relative to the map's own mean square, and averaged over them:
    pixels alone are content with a blur, and mislead the search more often.
    """
    maps = [] if discriminator is None else discriminator.feature_maps(image)
    wanted = [m.detach() for m in maps]

    def distance(y: Tensor) -> Tensor:
        total = (y - image).square().mean((1, 2, 3))
        for m, w in zip(discriminator.feature_maps(y) if wanted else (), wanted, strict=True):
            differing = (m - w).square().mean((1, 2, 3)) / w.square().mean()
            total = total + differing / len(wanted)
        return total

    return distance


def _improve(
    z: Tensor,
    generator: nn.Module,
    distance: Callable[[Tensor], Tensor],
    steps: int,
    bar: tqdm,
) -> Tensor:
    """Return the best latent (Z,) that Adam finds from the starts z (N, Z)."""

    def losses() -> Tensor:
        # A normal latent's mean square has the mean 1 and the variance 2 / Z.
        length = z.square().mean(1) / VARIANCE[generator.z_dist]
        return distance(generator(z)) + PRIOR * (length - 1).square() * generator.z_dim / 4

    z = z.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        (z.grad,) = torch.autograd.grad(losses().sum(), z)  # and none for the networks' weights
        optimizer.step()
        schedule.step()
        if generator.z_dist == "uniform":
            with torch.no_grad():
                z.clamp_(-1, 1)
        bar.update()
    with torch.no_grad():
        return z[losses().argmin()].detach()
