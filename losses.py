"""What the two players of the game minimise, by the names that --loss takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Loss(NamedTuple):
    """What each player minimises, from logits (N,).

    `output` is what is reported as D's output, and `outputs` what that is for an image that is
    surely generated, and for one that is surely real.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]  # of logit_real, logit_fake
    generator: Callable[[Tensor], Tensor]  # of logit_fake
    output: Callable[[Tensor], Tensor]
    outputs: tuple[float, float]


def bce_discriminator(logit_real: Tensor, logit_fake: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z))), where D is the sigmoid of its logit."""
    return F.softplus(-logit_real).mean() + F.softplus(logit_fake).mean()


def bce_generator(logit_fake: Tensor) -> Tensor:
    """-log D(G(z)): non-saturating, so that it learns most while it loses (Goodfellow 2014)."""
    return F.softplus(-logit_fake).mean()


def minimax_generator(logit_fake: Tensor) -> Tensor:
    """log(1 - D(G(z))): the game as it is derived; saturates while the generator loses."""
    return -F.softplus(logit_fake).mean()


def lsgan_discriminator(logit_real: Tensor, logit_fake: Tensor) -> Tensor:
    """Least squares with targets 1 and 0 (Mao et al. 2017, eq. 2)."""
    return ((logit_real - 1).square().mean() + logit_fake.square().mean()) / 2


def lsgan_generator(logit_fake: Tensor) -> Tensor:
    """Least squares with target 1."""
    return (logit_fake - 1).square().mean() / 2


def hinge_discriminator(logit_real: Tensor, logit_fake: Tensor) -> Tensor:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))) (Lim and Ye 2017)."""
    return F.relu(1 - logit_real).mean() + F.relu(1 + logit_fake).mean()


def hinge_generator(logit_fake: Tensor) -> Tensor:
    """-D(G(z))."""
    return -logit_fake.mean()


LOSSES = {
    "bce": Loss(bce_discriminator, bce_generator, torch.sigmoid, (0, 1)),
    "minimax": Loss(bce_discriminator, minimax_generator, torch.sigmoid, (0, 1)),
    "lsgan": Loss(lsgan_discriminator, lsgan_generator, lambda logit: logit, (0, 1)),
    "hinge": Loss(hinge_discriminator, hinge_generator, lambda logit: logit, (-1, 1)),
}
