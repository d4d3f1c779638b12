"""The game of two networks: the players, one step of each, and the latents of every step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from config import Config
from dataset import parse_size, to_device
from losses import Loss
from models import Discriminator, Generator, random_latents
from serialization.checkpoint import CheckpointError, check_weights
from training.augment import CHANCES, augment
from training.matrix_conv import largest_map_that_pays, use_matrix_products
from utils import random_at

METRICS = ("loss_d", "loss_g", "d_real", "d_fake")  # what train_step gives


class Players(NamedTuple):
    """Both networks, their optimizers, and the average of the generator that images come from."""

    generator: Generator
    discriminator: Discriminator
    optimizer_g: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer
    generator_ema: Generator


def train_step(
    players: Players,
    loss: Loss,
    real: Tensor,
    z: Tensor,
    z_fresh: Tensor | None = None,
    chances: Tensor | None = None,
    precision: str = "fp32",
) -> Tensor:
    """Play one step of each network on real images (N, C, H, W) in [-1, 1] and latents z (N, Z).

    With `z_fresh` (N, Z) the generator's half draws new images from it. With `chances` (3, N, 7)
    the discriminator sees all images augmented. With precision "bf16" the layers compute in that,
    from 32-bit weights. Gives loss_d, loss_g, and the means of D(x) and D(G(z)), (4,), on the
    device.
    """
    generator, discriminator, optimizer_g, optimizer_d, _ = players
    # Each half enters it anew: inside, weights are converted once, and D's are about to change.
    autocast = torch.autocast(real.device.type, torch.bfloat16, enabled=precision == "bf16")

    # Discriminator: tell real from generated. Real and generated images in batches of their
    # own, as each batch is normalised by its own statistics.
    with autocast:
        with torch.set_grad_enabled(z_fresh is None):
            fake = generator(z)
        logit_real = discriminator(_seen(real, chances, 0))
        logit_fake = discriminator(_seen(fake.detach(), chances, 1))
    logit_real, logit_fake = logit_real.float(), logit_fake.float()
    loss_d = loss.discriminator(logit_real, logit_fake)
    optimizer_d.zero_grad()
    loss_d.backward()
    optimizer_d.step()

    # Generator: be taken for real by the discriminator just improved, which needs no gradients
    # of its own weights for it.
    discriminator.requires_grad_(False)
    with autocast:
        if z_fresh is not None:
            fake = generator(z_fresh)
        logit = discriminator(_seen(fake, chances, 2))
    discriminator.requires_grad_(True)
    loss_g = loss.generator(logit.float())
    optimizer_g.zero_grad()
    loss_g.backward()
    optimizer_g.step()

    outputs = loss.output(logit_real).mean(), loss.output(logit_fake).mean()
    return torch.stack([loss_d, loss_g, *outputs]).detach()


def _seen(x: Tensor, chances: Tensor | None, look: int) -> Tensor:
    """Return images as the discriminator sees them, the first, second or third time in a step."""
    return x if chances is None else augment(x, chances[look])


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Move the weights of `average` towards those of `network`, after its `step`.

    They are an exponential moving average, whose decay rises to `decay` with the first steps: the
    random start would stay in it for long. Batch norm's statistics are not averaged: those of the
    averaged weights are others, and are taken when it draws.
    """
    decay = min(decay, step / (step + 9))
    get_ema_multi_avg_fn(decay)(list(average.parameters()), list(network.parameters()), None)


def make_networks(config: Config) -> tuple[Generator, Discriminator]:
    """Make the two networks that `config` describes."""
    size = parse_size(config.image_size)
    generator = Generator(
        config.z_dim, config.features, config.channels, size,
        config.max_features, config.norm, config.activation, config.z_dist,
    )  # fmt: skip
    discriminator = Discriminator(
        config.features, config.channels, size, config.max_features, config.norm
    )
    return generator, discriminator


def make_players(config: Config, device: torch.device) -> Players:
    """Make networks and optimizers; the weights follow from the seed alone, on every device."""
    torch.manual_seed(config.seed)
    generator, discriminator = make_networks(config)
    average = copy.deepcopy(generator).requires_grad_(False)
    average.to(device, memory_format=torch.channels_last)
    optimizers = []
    for network, rate in (
        (generator, config.learning_rate_g), (discriminator, config.learning_rate_d),
    ):  # fmt: skip
        if device.type == "cpu" and config.precision == "bf16":
            use_matrix_products(network, largest_map_that_pays())
        if config.sync_bn and device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(network)
        network.to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(
            network.parameters(),
            lr=config.learning_rate if rate is None else rate,
            betas=(config.beta1, config.beta2),
            fused=True,
            capturable=device.type == "cuda",  # its steps may be part of a CUDA graph
        )
        optimizers.append(optimizer)
    return Players(generator, discriminator, *optimizers, average)


def check_saved(config: Config, saved: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose weights are not those of the networks that `config` describes.

    Nor Adam's moments of them. Compares with networks that have shapes alone: a few bytes may ask
    for gigabytes.

    Raises:
        CheckpointError: naming what differs.
    """
    path = saved["path"]
    with torch.device("meta"):
        generator, discriminator = make_networks(config)
    check_weights(path, saved["generator"], generator.state_dict())
    check_weights(path, saved["generator_ema"], generator.state_dict())
    check_weights(path, saved["discriminator"], discriminator.state_dict())
    for name, network in (("optimizer_g", generator), ("optimizer_d", discriminator)):
        moments = ("exp_avg", "exp_avg_sq")
        expected = {
            f"{i} {moment}": p for i, p in enumerate(network.parameters()) for moment in moments
        }
        try:
            states = saved[name]["state"].items()
            given = {f"{i} {moment}": state[moment] for i, state in states for moment in moments}
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: its {name} is no Adam's") from error
        check_weights(path, given, expected)


def load_players(players: Players, saved: Mapping[str, Any]) -> None:
    """Return networks and optimizers the state of a checkpoint, also of one from another device.

    Raises:
        CheckpointError: a state is not one of these players'.
    """
    for name, player in players._asdict().items():
        try:
            player.load_state_dict(saved[name])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise CheckpointError(f"{saved['path']}: its {name} does not fit ({reason})") from error
        for group in getattr(player, "param_groups", ()):
            group["capturable"] = player.defaults["capturable"]  # this device's, not the saved


def tensors_in(state: Any) -> Iterator[Tensor]:
    """Return the tensors in a nest of dictionaries, such as players' states."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from tensors_in(value)


def drawn_at(
    config: Config, step: int, batch_size: int, part: slice, device: torch.device
) -> dict[str, Tensor]:
    """Draw what a step leaves to chance, by its names in `train_step`, from the seed and the step.

    Only the `part` of a batch is moved to the device.
    """
    drawn = {
        name: random_latents(
            random_at(config.seed, purpose, step), batch_size, config.z_dim, config.z_dist
        )[part]
        for name, purpose in (("z", "latents"), ("z_fresh", "fresh latents"))
        if name == "z" or config.fresh_latents
    }
    if config.augment:
        shape = 3, batch_size, CHANCES
        chances = random_at(config.seed, "augment", step).random(shape, np.float32)
        drawn["chances"] = torch.from_numpy(chances[:, part])
    return {name: to_device(tensor, device) for name, tensor in drawn.items()}
