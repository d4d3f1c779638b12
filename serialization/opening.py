"""Which networks to open: the settings that generate.py, evaluate.py and explore.py share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dataset import parse_size
from models import Discriminator, Generator
from serialization.checkpoint import SHIPPED, CheckpointError
from serialization.construct import ACTIVATIONS
from utils import check_settings, pick_device, setting


@dataclass(frozen=True, kw_only=True)
class Opening:
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
        shown="the likeliest",
    )  # fmt: skip
    z_dist: str | None = setting(
        "another program's checkpoint", None, "z from N(0, 1) or U(-1, 1)",
        shown="as batch norm tells, or normal",
        choices=("normal", "uniform"),
    )  # fmt: skip
    device: str = setting("run", "auto", "cpu, cuda, cuda:1, mps; auto: cuda or cpu")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.image_size is not None:
            parse_size(self.image_size)

    def open_generator(self) -> Generator | nn.Sequential:
        """Return the generator, see `Generator.from_checkpoint`.

        Raises:
            SettingsError, CheckpointError: there is no such device, or no generator in the file.
        """
        if self.load_path == str(SHIPPED):
            print(f"drawing with {SHIPPED.name}, which comes along; --load_path takes your own")
        return Generator.from_checkpoint(
            self.load_path, pick_device(self.device), not self.no_ema,
            activation=self.activation, z_dist=self.z_dist,
            image_size=self.image_size and parse_size(self.image_size),
        )  # fmt: skip

    def open_discriminator(self, generator: Generator | nn.Sequential) -> Discriminator:
        """Return the discriminator that lies beside a generator, for images such as that draws.

        Raises:
            SettingsError, CheckpointError: there is no such device, or no such discriminator.
        """
        says_all = isinstance(generator, Generator)
        network = Discriminator.from_checkpoint(
            self.load_path, pick_device(self.device),
            image_size=None if says_all else generator.image_size,
        )  # fmt: skip
        if network.channels != generator.channels:
            raise CheckpointError(
                f"{self.load_path} holds a generator of {generator.channels} channels, but a "
                f"discriminator of {network.channels}"
            )
        return network
