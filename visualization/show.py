"""An image in a notebook."""

from __future__ import annotations

import random

from matplotlib import pyplot
from torch import nn

from dataset import to_image
from models import generate, sample_latents


def show_random(generator: nn.Module, seed: int | None = None) -> int:
    """Show one image as a matplotlib figure, and give the seed that draws it again.

    Args:
        generator: of `Generator.from_checkpoint`.
        seed: of the image; None takes one at random.
    """
    seed = random.randrange(10**6) if seed is None else seed
    [image] = to_image(
        generate(generator, sample_latents([seed], generator.z_dim, generator.z_dist))
    )
    axes = pyplot.figure(figsize=(2.5, 2.5)).add_subplot()
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)  # the last three are for grey images alone
    axes.set_title(f"seed {seed}")
    axes.set_axis_off()
    return seed
