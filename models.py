"""The two networks of DCGAN: Radford, Metz and Chintala 2015, arXiv 1511.06434, section 3.

Shapes in this repository: N images in a batch, C channels (1 grey, 3 colour, 4 colour with
alpha), H x W pixels, Z dimensions of the latent space. The networks see values in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serialization import checkpoint
from serialization.checkpoint import CheckpointError
from serialization.foreign import ForeignError, open_network

Network = TypeVar("Network", bound=nn.Module)
LEAKY_SLOPE = 0.2  # section 4 of the paper
GENERATE_BATCH = 64  # rows that `generate` always gives the generator


class Generator(nn.Module):
    """Draws images from latents: each layer doubles the map and halves the channels.

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
        return self.main(z.view(z.shape[0], self.z_dim, 1, 1))

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        average: bool = True,
        **unsaid: Any,
    ) -> Generator | nn.Sequential:
        """Return the generator of a checkpoint, in eval mode, on `device`.

        With the moving average of its weights, or without `average` with those of the last step.
        One of another program becomes an nn.Sequential with `z_dim`, `z_dist`, `channels` and
        `image_size`, see `foreign.open_network`, whose `activation`, `image_size` and `z_dist` may
        be given, as such a file does not say them.

        Raises:
            checkpoint.CheckpointError: the file is missing, damaged or holds no DCGAN's generator.
        """
        return _read(cls, path, device, average, unsaid)


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
        """Return the discriminator of a checkpoint, as `Generator.from_checkpoint` the generator.

        Where export.py wrote the networks apart, `path` may be either file. One of another program
        has that one's layers as `main`, and its `image_size` may be given.
        """
        network = _read(cls, path, device, unsaid=unsaid)
        if isinstance(network, cls):
            return network
        foreign = cls(1, network.channels)  # what else the class does asks no more of `main`
        foreign.main, foreign.image_size = network, network.image_size
        return foreign.eval()

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
    """Draw a layer's weights as section 4 does: convolutions from N(0, 0.02).

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
    """Draw latents (count, Z) on the CPU: "normal" is N(0, 1), "uniform" is U(-1, 1)."""
    if z_dist == "normal":
        return torch.from_numpy(random.standard_normal((count, z_dim), dtype=np.float32))
    if z_dist == "uniform":
        return torch.from_numpy(random.random((count, z_dim), dtype=np.float32) * 2 - 1)
    raise ValueError(f"z_dist is normal or uniform, not {z_dist!r}")


def sample_latents(seeds: Sequence[int], z_dim: int, z_dist: str = "normal") -> Tensor:
    """Draw one latent per seed (any integer from 0), shape (len(seeds), Z), on the CPU.

    Row i depends on seeds[i] alone, so any image can be drawn again by itself, in any batch and
    on any device.
    """
    rows = [random_latents(np.random.default_rng(seed), 1, z_dim, z_dist) for seed in seeds]
    return torch.cat(rows) if rows else torch.empty(0, z_dim)


@torch.no_grad()
def generate(generator: nn.Module, z: Tensor) -> Tensor:
    """Draw the images (N, C, H, W) in [-1, 1] of latents z (N, Z), in eval mode, onto the CPU.

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


def _read(
    kind: type[Network],
    path: str | Path,
    device: str | torch.device,
    average: bool = False,
    unsaid: Mapping[str, Any] = MappingProxyType({}),
) -> Network | nn.Sequential:
    """Return the network of one class from a checkpoint, see `Generator.from_checkpoint`."""
    name = kind.__name__.lower()
    contents = checkpoint.read(path)
    if checkpoint.is_ours(contents) and name not in contents and checkpoint.beside(path).exists():
        path = checkpoint.beside(path)
        contents = checkpoint.read(path)
    given = {flag: value for flag, value in unsaid.items() if value is not None}
    if checkpoint.is_ours(contents):
        if given:
            raise CheckpointError(f"{path} says its {min(given)} itself: leave out --{min(given)}")
        network = _build(kind, path, *checkpoint.network_in(path, contents, name, average))
    else:
        try:
            network, line = open_network(contents, name, average, **given)
        except ForeignError as error:
            raise CheckpointError(f"{path} {error}") from error
        print(f"{path}: {line}")
    return network.eval().to(device, memory_format=torch.channels_last)


def _build(
    kind: type[Network], path: str | Path, settings: dict[str, Any], weights: dict[str, Tensor]
) -> Network:
    """Build a network of ours, once its weights are known to be those of its settings."""
    name = kind.__name__.lower()
    try:
        with torch.device("meta"):  # shapes alone: a few bytes may ask for gigabytes
            expected = kind(**settings).state_dict()
    except (TypeError, ValueError, RuntimeError) as error:
        reason = checkpoint.first_line(error)
        raise CheckpointError(f"{path}: its config is not a {name}'s ({reason})") from error
    checkpoint.check_weights(path, weights, expected)
    network = kind(**settings)
    network.load_state_dict(weights)
    return network


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
