"""The latent of an image, found by optimisation: what the generator comes nearest to it with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from dataset import printable, to_image, to_tensor
from models import GENERATE_BATCH, Generator, generate, random_latents
from preprocessing.decode import decode_all
from preprocessing.sources import DataError, Found, formats
from serialization.checkpoint import CheckpointError
from utils import REQUIRED, SettingsError, random_at, setting, warn
from visualization.command import Command
from visualization.figures import Cell, in_lines
from visualization.latents import VARIANCE, save_latents

CANDIDATES = 256  # latents whose images are compared before the best of them are improved
LEARNING_RATE = 0.2  # Adam's at the first step; it falls to 0 as a cosine does
PRIOR = 0.004  # weight of how unlikely a latent's length is, beside the distance of its image


@dataclass(frozen=True, kw_only=True)
class Invert(Command):
    """Find the latents whose images come nearest to photos, and save them for other commands.

    The sheet has the photos as the network sees them, and beneath each what its latent draws. The
    latents are rows of the .npy file beside it, which may stand wherever seeds do.
    """

    photos: list[str] = setting(  # noqa: RUF009
        "images", REQUIRED, "files of images", positional=True
    )
    starts: int = setting("search", 4, "latents that are improved; the best wins", minimum=1)
    steps: int = setting("search", 250, "steps to improve them", minimum=1)
    seed: int = setting("search", 0, "of the latents to start with", minimum=0, below=2**63)
    output: str = setting("files", "samples/invert.png", "the PNG; the .npy lies beside it")

    def open_output(self) -> Path:
        """Do as `Command.open_output`, and refuse to write over a photo."""
        output = super().open_output()
        if output.exists() and any(output.samefile(photo) for photo in self.photos):
            raise SettingsError(f"--output {output}: is one of the photos")
        return output

    def make(self, output: Path, generator: Generator) -> None:
        """Search, save the latents (N, Z) float32 and draw the sheet."""
        self.check_count(generator, 2 * len(self.photos))
        photos = read_photos(self.photos, generator.image_size, generator.channels)
        try:
            network = self.load_discriminator(generator)
        except CheckpointError as error:
            warn(f"{error}; photos are compared by their pixels alone")
            network = None
        z = invert(generator, to_tensor(photos), network, self.starts, self.steps, self.seed)
        drawn = to_image(generate(generator, z))
        for name, photo, image in zip(self.photos, photos, drawn, strict=True):
            difference = np.square(photo.astype(float) - image).mean() ** 0.5
            print(f"{printable(name)}: {difference:.1f} of 255 levels from what is drawn")

        latents = output.with_suffix(".npy")
        save_latents(latents, z)
        print(f"Wrote {latents}")
        names = (f"{latents.name}:{i}" for i in range(len(z)))
        above = list(map(Cell, self.enlarge(photos)))
        below = list(map(Cell, self.enlarge(drawn), names))
        self.write(output, in_lines(above, below))


def read_photos(paths: Sequence[str], image_size: tuple[int, int], channels: int) -> np.ndarray:
    """Return the images of files, decoded and cut as for training, as uint8 (N, H, W, C).

    Raises:
        DataError: naming the first file that can't be read, and why.
    """
    found = Found(paths, _open_photo, "", [])
    photos = []
    for path, decoded in decode_all(found, image_size, channels):
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
    """Find the latents z (N, Z), on the CPU, that draw images nearest to x (N, C, H, W) in [-1, 1].

    For each image, the best `starts` of `CANDIDATES` random latents are improved in one batch by
    `steps` steps of Adam, and the best of them is given, which follows from the image and the
    seed alone. See `distances` for what nearest means; `PRIOR` holds latents to the length that
    latents to draw from have, where the generator was trained.

    Both networks are left in eval mode. Shows the progress.
    """
    generator.eval()
    if discriminator is not None:
        discriminator.eval()
    device = next(generator.parameters()).device
    candidates = random_latents(
        random_at(seed, "inversion", 0), max(CANDIDATES, starts), generator.z_dim, generator.z_dist
    ).to(device)
    found = []
    total = len(x) * steps
    with tqdm(total=total, desc="Inverting", unit="step", disable=None, leave=False) as bar:
        for image in x.to(device).split(1):
            distance = distances(image, discriminator)
            with torch.no_grad():
                order = torch.cat(
                    [distance(generator(z)) for z in candidates.split(GENERATE_BATCH)]
                )
            z = candidates[order.argsort(stable=True)[:starts]]
            found.append(_improve(z, generator, distance, steps, bar))
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
