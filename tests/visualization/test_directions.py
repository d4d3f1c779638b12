"""Directions of z: what the first layer answers most, and images moved along them."""

import pytest
import torch
from conftest import write_generator
from PIL import Image
from test_explore import holds, run
from torch import nn

from dataset import to_image
from models import Generator, generate, sample_latents
from utils import SettingsError
from visualization.directions import leading_directions, read_displacement, read_moves


def with_linear_layer(activation=nn.LeakyReLU):
    """A generator as other programs have: a linear layer first, and batch norm by feature."""
    layers = [nn.Linear(6, 12), nn.BatchNorm1d(12), activation(), nn.Unflatten(1, (3, 2, 2))]
    network = nn.Sequential(*layers, nn.Tanh()).eval()
    network.z_dim = 6
    return network


def with_elu():
    return with_linear_layer(nn.ELU)


def with_transposed_convolution():
    return Generator(6, 8, 3, 8).eval()


@pytest.mark.parametrize("build", [with_linear_layer, with_elu, with_transposed_convolution])
def test_they_are_the_singular_vectors_of_the_first_layer_and_its_batch_norm(build):
    torch.manual_seed(0)
    network = build()
    layer, norm = [module for module in network.modules() if module._parameters][:2]
    nn.init.normal_(layer.weight)
    nn.init.uniform_(norm.weight, 0.1, 9)  # by which the answer differs from the weights' alone
    nn.init.uniform_(norm.running_var, 0.1, 9)
    by_input = layer.weight.T if isinstance(layer, nn.Linear) else layer.weight.flatten(1)
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    gain = gain.repeat_interleave(by_input.shape[1] // len(gain))
    expected = torch.linalg.svd((by_input * gain).detach()).U.T
    expected *= expected.gather(1, expected.abs().argmax(1, keepdim=True)).sign()
    torch.testing.assert_close(leading_directions(network, 6), expected, atol=1e-4, rtol=0)
    assert torch.equal(leading_directions(network, 2), leading_directions(network, 6)[:2])
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_moves_add_up():
    generator = with_transposed_convolution()
    assert read_moves(" 1:2.5, 3:-4") == [(1, 2.5), (3, -4.0)]
    first, _, third = leading_directions(generator, 3)
    moved = read_displacement(generator, "1:2.5,3:-4,1:1")
    torch.testing.assert_close(moved, 3.5 * first - 4 * third)


@pytest.mark.parametrize("text", ["", "1", "0:2", "1:", "1:x", "-1:2", "1:1e9", "1:2,", "7:1"])
def test_mistakes_name_the_flag(text):
    with pytest.raises(SettingsError, match=f"^--move {text}: "):
        read_displacement(with_transposed_convolution(), text)


def test_pick_draws_latents_moved_at_their_distance(tmp_path):
    path = write_generator(tmp_path / "a.pth")
    sheet = Image.open(run("pick", "--load_path", path, "--seeds", "5", "--move", "1:2,2:-3"))
    generator, z = Generator.from_checkpoint(path), sample_latents([5], 8)
    moved = z + read_displacement(generator, "1:2,2:-3")
    there = to_image(generate(generator, moved * z.norm() / moved.norm()))[0]
    assert holds(sheet, there) and not holds(sheet, to_image(generate(generator, z))[0])
