"""Networks from checkpoints: ours, and those of other programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models import Discriminator, Generator
from serialization import checkpoint
from serialization.checkpoint import SHIPPED, CheckpointError
from serialization.construct import ACTIVATIONS
from serialization.foreign import ForeignError, open_network
from utils import check_settings, first_line, memory_format, parse_size, pick_device, setting

Network = TypeVar("Network", Generator, Discriminator)


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """A checkpoint, what another program's leaves unsaid, and the device to draw on.

    Raises:
        SettingsError: a value out of its range.
    """

    load_path: str = setting(
        "images", str(SHIPPED), "the checkpoint, a .pth file", shown="the cats of this repository"
    )
    no_ema: bool = setting("images", False, "the last step's weights, not their average")
    activation: str | None = setting(
        "another program's checkpoint", None, "of its generator",
        shown="as batch norm tells, or relu", choices=tuple(ACTIVATIONS),
    )  # fmt: skip
    image_size: str | None = setting(
        "another program's checkpoint", None, "in pixels, 64 or 64x96 (height x width)",
        shown="the likeliest", size=True,
    )  # fmt: skip
    z_dist: str | None = setting(
        "another program's checkpoint", None, "z from N(0, 1) or U(-1, 1)",
        shown="as batch norm tells, or normal",
        choices=("normal", "uniform"),
    )  # fmt: skip
    device: str = setting("run", "auto", "cpu, cuda, cuda:1, mps; auto: cuda or cpu")

    def __post_init__(self) -> None:
        check_settings(self)

    def load_generator(self) -> Generator:
        """Load the generator.

        Raises:
            SettingsError, CheckpointError: no such device, or no generator in the file.
        """
        if self.load_path == str(SHIPPED):
            print(f"loading {SHIPPED.name}, which is included; --load_path takes your own")
        return Generator.from_checkpoint(
            self.load_path, pick_device(self.device), not self.no_ema,
            activation=self.activation, z_dist=self.z_dist,
            image_size=self.image_size and parse_size(self.image_size),
        )  # fmt: skip

    def load_discriminator(self, generator: Generator) -> Discriminator:
        """Load the discriminator of the same images as `generator`.

        Raises:
            SettingsError, CheckpointError: no such device, or no such discriminator.
        """
        network = Discriminator.from_checkpoint(
            self.load_path, pick_device(self.device), image_size=generator.assumed_size
        )
        if network.channels != generator.channels:
            raise CheckpointError(
                f"{self.load_path} holds a generator of {generator.channels} channels, but a "
                f"discriminator of {network.channels}"
            )
        return network


def load_network(
    kind: type[Network],
    path: str | Path,
    device: str | torch.device,
    average: bool = False,
    unsaid: Mapping[str, Any] = MappingProxyType({}),
) -> Network:
    """Load the network of one class from a checkpoint, see `Generator.from_checkpoint`.

    A foreign network's `assumed_size` is its image size, which its file does not say.
    """
    name, device = kind.__name__.lower(), torch.device(device)
    contents = checkpoint.read(path)
    if checkpoint.is_ours(contents) and name not in contents and checkpoint.beside(path).exists():
        path = checkpoint.beside(path)
        contents = checkpoint.read(path)
    given = {flag: value for flag, value in unsaid.items() if value is not None}
    if checkpoint.is_ours(contents):
        if given:
            raise CheckpointError(f"{path} says its {min(given)} itself: leave out --{min(given)}")
        network = _build(kind, path, *checkpoint.network_in(path, contents, name, average))
        network.assumed_size = None
    else:
        try:
            layers, line = open_network(contents, name, average, **given)
        except ForeignError as error:
            raise CheckpointError(f"{path} {error}") from error
        print(f"{path}: {line}")
        network = kind(features=1, channels=layers.channels)  # whose layers are these:
        if kind is Generator:
            is_linear = isinstance(layers.main[0], nn.Linear)
            network.main, network.z_dim, network.z_dist = layers.main, layers.z_dim, layers.z_dist
            network.z_shape = (layers.z_dim,) if is_linear else (layers.z_dim, 1, 1)
        else:
            network.main = layers
        network.image_size = network.assumed_size = layers.image_size
    return network.eval().to(device, memory_format=memory_format(device))


def _build(
    kind: type[Network], path: str | Path, settings: dict[str, Any], weights: dict[str, Tensor]
) -> Network:
    """Build a network of ours, once its weights are known to be those of its settings."""
    name = kind.__name__.lower()
    try:
        with torch.device("meta"):  # shapes alone: a few bytes may ask for gigabytes
            expected = kind(**settings).state_dict()
    except (TypeError, ValueError, RuntimeError) as error:
        reason = first_line(str(error))
        raise CheckpointError(f"{path}: its config is not a {name}'s ({reason})") from error
    checkpoint.check_weights(path, weights, expected)
    network = kind(**settings)
    network.load_state_dict(weights)
    return network
