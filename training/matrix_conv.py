"""The deep convolutions as one matrix product each, for CPUs with bf16 instructions.

There oneDNN's backward pass of a wide convolution on a small map takes longer than the same
sums as a bf16 matrix product. So the windows that the kernel sees are copied into the rows of a
matrix. On a large map that copy costs more than the product gains.

In eval mode the layers are plain ones, so that an image drawn during training equals, to the bit,
the one that generate.py draws from the checkpoint.

The geometry is that of `models.py`: kernel 4, stride 2, padding 1, between a map of H x W pixels
and one of h x w, where h = H // 2 and w = W // 2. A map in channels_last memory is (N, H, W, C)
without a copy, and so is a weight (C', 4, 4, C).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function


class MatrixConv2d(nn.Conv2d):
    """An `nn.Conv2d` of kernel 4, stride 2 and padding 1, as a product of windows and weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', h, w) in channels_last memory."""
        if not self.training:
            return super().forward(x)
        windows = Gather.apply(x.permute(0, 2, 3, 1))
        y = F.linear(windows.flatten(3).flatten(0, 2), _as_matrix(self.weight), self.bias)
        return y.unflatten(0, windows.shape[:3]).permute(0, 3, 1, 2)


class MatrixConvTranspose2d(nn.ConvTranspose2d):
    """An `nn.ConvTranspose2d` of kernel 4, stride 2 and padding 1: a product that gives windows."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, C', H, W), odd where `output_padding` is 1, in channels_last."""
        if not self.training:
            return super().forward(x)
        x = x.permute(0, 2, 3, 1)
        size = [2 * side + odd for side, odd in zip(x.shape[1:3], self.output_padding, strict=True)]
        windows = x.flatten(0, 2) @ _as_matrix(self.weight)
        windows = windows.view(*x.shape[:3], 4, 4, self.out_channels)
        y = Scatter.apply(windows, size).permute(0, 3, 1, 2)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]


def use_matrix_products(network: nn.Module, largest_map: int) -> None:
    """Convert the deep layers of a `Generator` or `Discriminator` into matrix products, in place.

    Those are the layers whose smaller map has at most `largest_map` x `largest_map` pixels. The
    generator's first layer and the discriminator's last are such products anyway, and stay.
    Parameters stay the same objects, so it makes no difference whether an optimizer has them yet.
    """
    layers = [layer for layer in network.main if getattr(layer, "stride", None) == (2, 2)]
    if isinstance(layers[0], nn.ConvTranspose2d):
        layers.reverse()  # from the image down, as in the discriminator
    height, width = network.image_size
    for halvings, layer in enumerate(layers, 1):
        if (height >> halvings) * (width >> halvings) <= largest_map**2:
            # Only `forward` differs, so the layer itself may change its class.
            conv = isinstance(layer, nn.Conv2d)
            layer.__class__ = MatrixConv2d if conv else MatrixConvTranspose2d


def largest_map_that_pays() -> int:
    """Return the side of the largest map, in pixels, that is faster as a matrix product here.

    A step at 64x64, batch 128 in bf16: on two cores of a Zen 5 447 ms without any, 420 with maps
    up to 4 and 452 up to 8. With AMX the product gains more, and was found to pay up to 8.
    """
    return 8 if torch.cpu.get_capabilities().get("amx_bf16") else 4


class Gather(Function):
    """Copies the windows (N, h, w, 4, 4, C) out of a map (N, H, W, C) with a border of zeros."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.size = list(x.shape[1:3])
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        windows = padded.unfold(1, 4, 2).unfold(2, 4, 2)  # (N, h, w, C, 4, 4)
        return windows.permute(0, 1, 2, 4, 5, 3).contiguous()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return Scatter.apply(gradient, ctx.size)


class Scatter(Function):
    """Adds windows (N, h, w, 4, 4, C) up where `Gather` took them: a map (N, H, W, C) of `size`.

    Each is the other's gradient. Windows are two pairs of pixels wide and one pair apart, so
    that eight strided additions of pairs do what sixteen of pixels would.
    """

    @staticmethod
    def forward(ctx, windows: Tensor, size: list[int]) -> Tensor:
        n, h, w, _, _, channels = windows.shape
        pairs = windows.reshape(n, h, w, 4, 2, 2 * channels)
        padded = windows.new_zeros(n, 2 * h + 2, w + 1, 2 * channels)
        for row in range(4):
            for pair in range(2):
                padded[:, row : row + 2 * h : 2, pair : pair + w] += pairs[:, :, :, row, pair]
        padded = padded.view(n, 2 * h + 2, 2 * w + 2, channels)
        return padded[:, 1 : size[0] + 1, 1 : size[1] + 1].contiguous()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return Gather.apply(gradient), None


def _as_matrix(weight: Tensor) -> Tensor:
    """Return a weight (C', C, 4, 4) as (C', 16 C); a view where it is channels_last."""
    return weight.permute(0, 2, 3, 1).flatten(1)
