"""Strides from kernels: the sizes that people use come out, and are those of the layers."""

import pytest
import torch
from torch import nn

from serialization.strides import Kernel, settle


@pytest.mark.parametrize(
    ("kernels", "first", "channels", "size", "given"),
    [
        ("4444", 1, 3, 32, None), ("44444", 1, 3, 64, None), ("444444", 1, 3, 128, None),
        ("34444", 1, 3, 48, None), ("3434", 1, 1, 28, None), ("4444", 1, 1, 28, 28),
        ("444", 7, 1, 28, 28), ("555", 4, 3, 32, None), ("555", 7, 1, 28, None),
        ("333", 8, 3, 64, None), ("66", 8, 3, 32, None), ("22", 8, 3, 32, None),
        ("444444", 1, 3, 64, 64), ("744", 1, 1, 29, 29),
    ],
)  # fmt: skip
def test_the_usual_size_of_kernels(kernels, first, channels, size, given):
    shapes = [Kernel((int(kernel),) * 2, True) for kernel in kernels]
    manners, maps = settle(shapes, [(first, first)], channels, given and (given, given))
    assert maps[0] == (first, first) and maps[-1] == (size, size)
    x = torch.zeros(1, 1, *maps[0])
    for kernel, manner, after in zip(shapes, manners, maps[1:], strict=True):
        layer = nn.ConvTranspose2d(1, 1, kernel.size, manner.stride, manner.padding,
                                   manner.output_padding)  # fmt: skip
        x = layer(x)
        assert x.shape[2:] == after
