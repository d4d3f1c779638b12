"""Networks as other people write them, for the tests that open their files."""

import math

import numpy as np
import torch
from torch import nn

from models import Generator, generate, random_latents, sample_latents

TAIL = (4, 2, 1)  # kernel, stride and padding of most layers


class Example(nn.Module):
    """The PyTorch DCGAN example's generator, as its --netG loads it at the default settings."""

    def __init__(self, z_dim=100, widths=(512, 256, 128, 64), channels=3):
        super().__init__()
        layers, before = [], z_dim
        for i, width in enumerate(widths):
            how = (4, 2, 1) if i else (4, 1, 0)
            layers.append(nn.ConvTranspose2d(before, width, *how, bias=False))
            layers += [nn.BatchNorm2d(width), nn.ReLU(True)]
            before = width
        layers += [nn.ConvTranspose2d(before, channels, *TAIL, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(self, z):
        return self.main(z[:, :, None, None])


def chain(*modules):
    """A generator of a plain list of modules, whose keys are their numbers."""
    return nn.Sequential(nn.Unflatten(1, (-1, 1, 1)), *modules)


class Numbered(nn.Module):
    """Layers by number, the norms in a list of their own; relu as a function."""

    def __init__(self, names=("tconv", "bn"), bias=False):
        super().__init__()
        self.names, widths = names, (12, 16, 8, 6, 3)
        for i in range(4):
            how = (4, 2, 1) if i else (4, 1, 0)
            layer = nn.ConvTranspose2d(widths[i], widths[i + 1], *how, bias=bias)
            self.add_module(f"{names[0]}{i + 1}", layer)
        for i in range(3):
            self.add_module(f"{names[1]}{i + 1}", nn.BatchNorm2d(widths[i + 1]))

    def forward(self, z):
        x = z[:, :, None, None]
        for i in range(1, 4):
            layer, norm = (getattr(self, f"{name}{i}") for name in self.names)
            x = norm(layer(x)).relu()
        return getattr(self, f"{self.names[0]}4")(x).tanh()


class Nested(nn.Module):
    """Blocks in blocks, as gen.0.0.weight; the last layer has a bias and stands alone."""

    def __init__(self, name="gen"):
        super().__init__()
        blocks = [
            nn.Sequential(
                nn.ConvTranspose2d(*widths, *how, bias=False), nn.BatchNorm2d(widths[1]), nn.ReLU()
            )
            for widths, how in (((9, 16), (4, 1, 0)), ((16, 8), TAIL), ((8, 4), TAIL))
        ]
        blocks += [nn.ConvTranspose2d(4, 3, *TAIL), nn.Tanh()]
        self.add_module(name, nn.Sequential(*blocks))

    def forward(self, z):
        return next(self.children())(z[:, :, None, None])


class Projected(nn.Module):
    """z through a linear layer, reshaped; batch norm before, after, or not at all."""

    def __init__(self, norm=None, kernel=(5, 2, 2, 1), first=(4, 4)):
        super().__init__()
        width = 8 * math.prod(first)
        self.fc = nn.Linear(10, width)
        self.norm, self.first = norm, first
        if norm:
            self.norm0 = nn.BatchNorm1d(width) if norm == "flat" else nn.BatchNorm2d(8)
        self.deconv1 = nn.ConvTranspose2d(8, 6, *kernel)
        self.norm1 = nn.BatchNorm2d(6)
        self.deconv2 = nn.ConvTranspose2d(6, 4, *kernel)
        self.norm2 = nn.BatchNorm2d(4)
        self.deconv3 = nn.ConvTranspose2d(4, 3, *kernel)

    def forward(self, z):
        x = self.fc(z)
        x = self.norm0(x) if self.norm == "flat" else x
        x = x.view(len(z), 8, *self.first)
        x = (self.norm0(x) if self.norm == "maps" else x).relu()
        x = self.norm1(self.deconv1(x)).relu()
        return self.deconv3(self.norm2(self.deconv2(x)).relu()).tanh()


def up(before, after, *how, norm=True, **options):
    layers = [nn.ConvTranspose2d(before, after, *how, **options)]
    return [*layers, *[nn.BatchNorm2d(after)] * norm, nn.ReLU()]


def down(before, after, *how, norm=True, **options):
    layers = [nn.Conv2d(before, after, *how, **options)]
    return [*layers, *[nn.BatchNorm2d(after)] * norm, nn.LeakyReLU(0.2)]


def plain_critic():
    """Return the layers of a usual discriminator of 32x32 pixels."""
    inner = [*down(4, 8, *TAIL), *down(8, 8, *TAIL)]
    return [*down(3, 4, *TAIL, norm=False), *inner, nn.Conv2d(8, 1, 4)]


def at_random(network, seed=0):
    """Return a network weights and statistics that tell, in eval mode."""
    torch.manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            fresh = torch.rand_like(tensor) if "running_var" in name else torch.randn_like(tensor)
            scale = 1.5 / max(tensor.shape[:2]) ** 0.5 if tensor.ndim > 1 else 0.5
            tensor.copy_(fresh * scale + 0.5 * ("var" in name))
    return network.eval()


@torch.no_grad()
def lived(network, z_dim, z_dist="normal"):
    """Give a network's batch norm the averages of its own maps, as training does."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.momentum = None  # the averages are those of all batches
            layer.reset_running_stats()
    network.train()
    for step in range(40):
        network(random_latents(np.random.default_rng(step), 64, z_dim, z_dist))
    return network.eval()


@torch.no_grad()
def same_images(path, stranger, z_dim, **given):
    generator = Generator.from_checkpoint(path, **given)
    assert type(generator) is Generator and not generator.training
    assert generator.z_dim == z_dim
    z = sample_latents(range(5), generator.z_dim, generator.z_dist)
    ours, theirs = generate(generator, z), stranger(z)
    assert ours.shape == theirs.shape == (5, generator.channels, *generator.image_size)
    assert torch.allclose(ours, theirs, atol=1e-5) and theirs.std() > 0.05
    return generator


def z_dim_of(stranger):
    first = next(iter(stranger.parameters()))
    return first.shape[1] if first.ndim == 2 else first.shape[0]
