"""Convolutions as matrix products: the plain layers' values and gradients, in the layers meant."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from models import Discriminator, Generator
from training.matrix_conv import (
    Gather,
    MatrixConv2d,
    MatrixConvTranspose2d,
    Scatter,
    use_matrix_products,
)

MATRIX_FORMS = (MatrixConv2d, MatrixConvTranspose2d)
MAPS = [(8, 8), (4, 12), (9, 9), (7, 10)]  # the larger map of a layer, in pixels
CHANNELS_LAST = torch.channels_last


def make_pair(plain, size, bias=False, dtype=torch.float64):
    """Return a plain layer from 6 to 5 channels, its matrix form, and an input; maps of `size`."""
    torch.manual_seed(0)
    height, width = size
    if plain is nn.Conv2d:
        layer, x = nn.Conv2d(6, 5, 4, 2, 1, bias=bias), torch.randn(3, 6, height, width)
        form = MatrixConv2d(6, 5, 4, 2, 1, bias=bias)
    else:
        odd = (height % 2, width % 2)
        layer = nn.ConvTranspose2d(6, 5, 4, 2, 1, output_padding=odd, bias=bias)
        form = MatrixConvTranspose2d(6, 5, 4, 2, 1, output_padding=odd, bias=bias)
        x = torch.randn(3, 6, height // 2, width // 2)
    form.load_state_dict(layer.state_dict())
    return layer.to(dtype), form.to(dtype), x.to(dtype)


def run(layer, x, **settings):
    """Return the output of a layer or network and the gradients of its input and parameters."""
    x = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, **settings):
        y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    gradients = torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])
    return [y.detach(), *gradients]


@pytest.mark.parametrize("size", MAPS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("plain", [nn.Conv2d, nn.ConvTranspose2d])
def test_values_and_gradients_are_those_of_the_plain_layer(plain, bias, size):
    layer, form, x = make_pair(plain, size, bias)
    expected = run(layer, x, enabled=False)
    for layout in (torch.contiguous_format, CHANNELS_LAST):
        for x_layout in (torch.contiguous_format, CHANNELS_LAST):
            form.to(memory_format=layout)
            actual = run(form, x.contiguous(memory_format=x_layout), enabled=False)
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
            assert actual[0].is_contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize("size", MAPS)
@pytest.mark.parametrize("plain", [nn.Conv2d, nn.ConvTranspose2d])
def test_bf16_autocast_rounds_and_keeps_gradients_in_fp32(plain, size):
    layer, form, x = make_pair(plain, size, bias=True, dtype=torch.float32)
    for tensor in (x, *layer.parameters(), *form.parameters()):
        tensor.data = tensor.data.bfloat16().float()  # so that sums and products alone round
    y, *gradients = run(form, x)
    assert y.dtype == torch.bfloat16 and {g.dtype for g in gradients} == {torch.float32}
    for actual, expected in zip([y, *gradients], run(layer, x, enabled=False), strict=True):
        error = (actual.float() - expected).norm() / expected.norm()
        assert error < 2**-7  # a bf16 has 8 bits; four of them are added up


@pytest.mark.parametrize("size", MAPS)
def test_gather_and_scatter_are_each_others_gradient(size):
    torch.manual_seed(0)
    x = torch.randn(2, *size, 2, dtype=torch.float64, requires_grad=True)
    windows = torch.randn_like(Gather.apply(x), requires_grad=True)
    assert torch.autograd.gradcheck(Gather.apply, x, fast_mode=True)
    assert torch.autograd.gradcheck(lambda w: Scatter.apply(w, size), windows, fast_mode=True)
    assert torch.autograd.gradgradcheck(Gather.apply, x, fast_mode=True)


@pytest.mark.parametrize("plain", [nn.Conv2d, nn.ConvTranspose2d])
def test_only_the_gradients_asked_for_are_computed_and_kept_for(plain):
    _, form, x = make_pair(plain, (8, 8))

    def saved_shapes():
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: shapes.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor
        ):
            form(x).sum().backward()
        return shapes

    matrices = {"rows": (48, 96), "weight": (96, 5)}  # of the convolution: windows, then weight
    if plain is nn.ConvTranspose2d:
        matrices = {"rows": (48, 6), "weight": (6, 80)}
    assert saved_shapes() == [matrices["rows"]]
    assert x.grad is None and form.weight.grad is not None

    form.weight.grad = None
    form.weight.requires_grad_(False)
    x.requires_grad_()
    assert saved_shapes() == [matrices["weight"]]
    assert x.grad is not None and form.weight.grad is None


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize(("size", "count"), [((32, 32), 3), ((28, 44), 2)])
def test_networks_keep_their_parameters_values_and_gradients(size, count, norm):
    torch.manual_seed(0)
    z, x = torch.randn(4, 10), torch.rand(4, 3, *size) * 2 - 1
    for network, data in (
        (Generator(10, 8, image_size=size, norm=norm), z),
        (Discriminator(8, image_size=size, norm=norm), x),
    ):
        network.to(dtype=torch.float64, memory_format=CHANNELS_LAST)
        for parameter in network.parameters():
            parameter.data *= 5  # values far from zero, without batch norm too
        plain = deepcopy(network)
        parameters, state = dict(network.named_parameters()), network.state_dict()
        use_matrix_products(network, 256)
        assert sum(isinstance(layer, MATRIX_FORMS) for layer in network.main) == count

        after = dict(network.named_parameters())
        assert list(network.state_dict()) == list(state)
        assert all(after[name] is parameter for name, parameter in parameters.items())
        actual = run(network, data.double(), enabled=False)
        expected = run(plain, data.double(), enabled=False)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(network.state_dict(), plain.state_dict())


def test_in_eval_mode_a_network_draws_what_the_plain_one_does_to_the_bit():
    generator = Generator(8, 16).eval()
    plain, z = deepcopy(generator), torch.randn(4, 8)
    use_matrix_products(generator, 64)
    assert torch.equal(generator(z), plain(z))
    assert sum(isinstance(layer, MATRIX_FORMS) for layer in generator.main) == 4


@pytest.mark.parametrize(
    ("size", "largest_map", "halvings"),
    [
        (64, 0, []),
        (64, 3, []),
        (64, 4, [4]),
        (64, 8, [4, 3]),
        (64, 1000, [4, 3, 2, 1]),
        ((64, 96), 4, []),  # the smallest map is 4x6
        ((64, 96), 5, [4]),
        (28, 7, [2]),
    ],
)
def test_replaces_the_layers_whose_smaller_map_is_small_enough(size, largest_map, halvings):
    """`halvings` are those from the image to the smaller map of each layer replaced."""
    generator = Generator(8, 2, image_size=size)
    discriminator = Discriminator(2, image_size=size)
    for network in (generator, discriminator):
        use_matrix_products(network, largest_map)
        use_matrix_products(network, largest_map)  # a second time changes nothing
    convolutions = [layer for layer in discriminator.main if isinstance(layer, nn.Conv2d)]
    replaced = [i for i, layer in enumerate(convolutions, 1) if type(layer) is MatrixConv2d]
    assert replaced == halvings[::-1]
    layers = [layer for layer in generator.main if isinstance(layer, nn.ConvTranspose2d)][::-1]
    replaced = [i for i, layer in enumerate(layers, 1) if type(layer) is MatrixConvTranspose2d]
    assert replaced == halvings[::-1]
