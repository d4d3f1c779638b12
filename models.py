"""The two networks of DCGAN: Radford, Metz and Chintala 2015, arXiv 1511.06434, section 3.

Shapes in this repository: N images in a batch, C channels (1 grey, 3 colour, 4 colour with
alpha), H x W pixels, Z dimensions of the latent space. The networks see values in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.2  # section 4 of the paper
GENERATE_BATCH = 64  # rows that `generate` always gives the generator


class Generator(nn.Module):
    """Generates images from latents: each layer doubles the map and halves the channels.

    Args:
        z_dim: dimensions Z of the latent space; the paper's 100.
        features: channels of the last hidden map, doubled towards the first. 64 is PyTorch's
            usual DCGAN; 128 at 64x64 is the paper's 1024-512-256-128.
        channels: channels C of an image.
        image_size: side in pixels, or (height, width); each from 8 to 256.
        max_features: upper bound of the channels of any map.
        norm: "batch", or "none", which gives the convolutions a bias instead.
        activation: "relu" as in the paper, or "leaky_relu".
        z_dist: the distribution of latents it is trained on, see `sample_latents`.

    Raises:
        ValueError: a size, norm, activation or distribution that is none of these.
    """

    def __init__(
        self,
        z_dim: int = 100,
        features: int = 64,
        channels: int = 3,
        image_size: int | tuple[int, int] = 64,
        max_features: int = 1024,
        norm: str = "batch",
        activation: str = "relu",
        z_dist: str = "normal",
    ) -> None:
        super().__init__()
        if z_dist not in ("normal", "uniform"):
            raise ValueError(f"z_dist is normal or uniform, not {z_dist!r}")
        maps = _map_sizes(image_size)[::-1]
        widths = [*_widths(features, len(maps) - 1, max_features)[::-1], channels]
        self.z_dim, self.z_dist = z_dim, z_dist
        self.channels, self.image_size = channels, maps[-1]
        self.z_shape = (z_dim, 1, 1)  # that `main` takes

        bias = norm == "none"
        # The paper projects z with a linear layer and reshapes it; on a 1x1 map that is this
        # transposed convolution, whose kernel is the whole first map.
        layers: list[nn.Module] = [nn.ConvTranspose2d(z_dim, widths[0], maps[0], bias=bias)]
        for (width, next_width), (height, breadth) in zip(pairwise(widths), maps[1:], strict=True):
            layers += [*_norm(norm, width), _activation(activation)]
            odd = (height % 2, breadth % 2)
            layers.append(
                nn.ConvTranspose2d(width, next_width, 4, 2, 1, output_padding=odd, bias=bias)
            )
        self.main = nn.Sequential(*layers, nn.Tanh())
        self.apply(init_weights)

    def forward(self, z: Tensor) -> Tensor:
        """Map latents z (N, Z) or (N, Z, 1, 1) to images (N, C, H, W) with values in [-1, 1]."""
        return self.main(z.view(z.shape[0], *self.z_shape))

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        average: bool = True,
        **unsaid: Any,
    ) -> Generator:
        """Load the generator of a checkpoint, in eval mode, on `device`.

        With the EMA of its weights, or without `average` with those of the last step. One of
        another program has that one's layers as `main`; its `activation`, `image_size` and `z_dist`
        may be given, as such a file does not say them.

        Raises:
            serialization.checkpoint.CheckpointError: the file is missing, damaged or holds no
                DCGAN's generator.
        """
        from serialization.load import load_network

        return load_network(cls, path, device, average, unsaid)


class Discriminator(nn.Module):
    """Tells real images from generated ones: the generator's mirror, each layer halves the map.

    Arguments and errors as in `Generator`; `features` is the width of the first hidden map.
    """

    def __init__(
        self,
        features: int = 64,
        channels: int = 3,
        image_size: int | tuple[int, int] = 64,
        max_features: int = 1024,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        maps = _map_sizes(image_size)
        widths = [channels, *_widths(features, len(maps) - 1, max_features)]
        self.channels, self.image_size = channels, maps[0]

        bias = norm == "none"
        layers: list[nn.Module] = []
        for i, (width, next_width) in enumerate(pairwise(widths)):
            layers.append(nn.Conv2d(width, next_width, 4, 2, 1, bias=bias))
            if i > 0:  # none at the input, so that D sees the scale of the images (section 3)
                layers += _norm(norm, next_width)
            layers.append(_activation("leaky_relu"))
        layers.append(nn.Conv2d(widths[-1], 1, maps[-1], bias=bias))
        self.main = nn.Sequential(*layers)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Return one logit each, (N,), for images x (N, C, H, W) in [-1, 1]; above 0 means real.

        Departs from the paper, whose network ends in the sigmoid: the losses take logits, which
        neither overflow nor saturate in half precision.
        """
        return self.main(x).flatten()

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, device: str | torch.device = "cpu", **unsaid: Any
    ) -> Discriminator:
        """Load the discriminator of a checkpoint, as `Generator.from_checkpoint` the generator.

        Where the two networks were exported apart, `path` may be either file.
        """
        from serialization.load import load_network

        return load_network(cls, path, device, unsaid=unsaid)

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """Return the map of every convolution but the logit's, after its activation, largest first.

        For images x (N, C, H, W) in [-1, 1], map i is (N, features * 2**i, H >> i+1, W >> i+1),
        its channels bounded by `max_features`. Section 5.1 classifies images by these.
        """
        maps = []
        for layer in self.main[:-1]:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                maps.append(x)
        return maps


def init_weights(module: nn.Module) -> None:
    """Initialise a layer's weights as section 4 does: convolutions from N(0, 0.02).

    Batch norm's gain comes from N(1, 0.02), as in the authors' code. Biases start at 0.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def random_latents(
    random: np.random.Generator, count: int, z_dim: int, z_dist: str = "normal"
) -> Tensor:
    """Sample latents (count, Z) on the CPU: "normal" is N(0, 1), "uniform" is U(-1, 1)."""
    if z_dist == "normal":
        return torch.from_numpy(random.standard_normal((count, z_dim), dtype=np.float32))
    if z_dist == "uniform":
        return torch.from_numpy(random.random((count, z_dim), dtype=np.float32) * 2 - 1)
    raise ValueError(f"z_dist is normal or uniform, not {z_dist!r}")


def sample_latents(seeds: Sequence[int], z_dim: int, z_dist: str = "normal") -> Tensor:
    """Sample one latent per seed (any integer from 0), shape (len(seeds), Z), on the CPU.

    Row i depends on seeds[i] alone, so any image can be drawn again by itself, in any batch and
    on any device.
    """
    rows = [random_latents(np.random.default_rng(seed), 1, z_dim, z_dist) for seed in seeds]
    return torch.cat(rows) if rows else torch.empty(0, z_dim)


@torch.no_grad()
def generate(generator: nn.Module, z: Tensor) -> Tensor:
    """Generate the images (N, C, H, W) in [-1, 1] of latents z (N, Z), in eval mode, onto the CPU.

    Image i depends on z[i] alone, to the last bit: batch norm takes its running statistics, and
    the network always sees `GENERATE_BATCH` rows, since another batch shape may round differently.
    Leaves the generator as it was, so that an image drawn during training changes nothing.
    """
    device = next(generator.parameters()).device
    was_training = generator.training
    generator.eval()
    images = []
    for rows in z.split(GENERATE_BATCH):
        padded = F.pad(rows, (0, 0, 0, GENERATE_BATCH - len(rows))).to(device)
        images.append(generator(padded)[: len(rows)].cpu())
    generator.train(was_training)
    return torch.cat(images)


@torch.no_grad()
def recalibrate(network: nn.Module, stream: Iterable[Tensor]) -> None:
    """Recompute batch-norm statistics as the mean over batches of inputs; leaves eval mode.

    The authors' code does so to a discriminator with the training images: the running averages
    of its training are those of real and generated ones.
    """
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # all batches count alike
    network.train()
    for x in stream if norms else ():
        network(x)
    network.eval()


def _map_sizes(image_size: int | tuple[int, int]) -> list[tuple[int, int]]:
    """Return (height, width) of each map, from the image down to the smallest of at least 4x4."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not (8 <= height <= 256 and 8 <= width <= 256):
        raise ValueError(f"image_size must be from 8 to 256 pixels a side, not {height}x{width}")
    halvings = min(height, width).bit_length() - 3
    return [(height >> i, width >> i) for i in range(halvings + 1)]


def _widths(features: int, count: int, max_features: int) -> list[int]:
    """Return the channels of `count` hidden maps, largest map first: doubled, up to the bound."""
    return [min(features << i, max_features) for i in range(count)]


def _norm(norm: str, width: int) -> list[nn.Module]:
    """Return the normalisation that follows a convolution, as a list of one layer or none."""
    if norm == "batch":
        return [nn.BatchNorm2d(width)]
    if norm == "none":
        return []
    raise ValueError(f"norm is batch or none, not {norm!r}")


def _activation(name: str) -> nn.Module:
    if name == "relu":
        return nn.ReLU(inplace=True)
    if name == "leaky_relu":
        return nn.LeakyReLU(LEAKY_SLOPE, inplace=True)
    raise ValueError(f"activation is relu or leaky_relu, not {name!r}")
