"""Filters: guided backpropagation, filters behind what is marked, and images without them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from strangers import TAIL, at_random, plain_critic, up
from torch import nn

from dataset import to_image
from explore import COMMANDS
from models import Discriminator, Generator, generate, recalibrate, sample_latents
from serialization.checkpoint import CheckpointError
from utils import parse_settings
from visualization.filters import (
    activations_of,
    as_image,
    dim,
    find_filters,
    guided_gradient,
    last_maps,
    maps_of,
    mark,
    read_boxes,
    strongest,
    without,
)


def vary(network):
    torch.manual_seed(0)
    network.apply(lambda m: nn.init.normal_(m.weight, 0, 0.2) if hasattr(m, "weight") else m)
    return network.eval()


def make_discriminator(size=32):
    return vary(Discriminator(4, 3, size))


def make_generator(size=32, **settings):
    return vary(Generator(8, 8, 3, size, **settings))


# Figure 5: what excites the discriminator's filters -----------------------------------------------


def test_with_one_convolution_the_guided_gradient_is_the_filter_at_its_strongest_place():
    network = make_discriminator(8)  # maps of 4x4 places, of 4x4 pixels two apart
    x = torch.zeros(1, 3, 8, 8)
    x[0, :, 3:7, 1:5] = network.main[0].weight[2].detach()
    assert torch.allclose(guided_gradient(network, x, 2), x)


def test_guided_backpropagation_is_that_of_relus_whose_gradient_is_clipped():
    """Beside a second way to say it: layer by layer, backwards from the strongest activation."""
    network, x = make_discriminator(), torch.rand(3, 3, 32, 32) * 2 - 1
    inputs, hidden = [], x
    for layer in network.main[:-1]:
        inputs.append(hidden)
        hidden = layer(hidden.clone())
    flat = hidden[:, 1].flatten(1)
    back = torch.zeros_like(hidden)
    back[:, 1] = nn.functional.one_hot(flat.argmax(1), flat.shape[1]).view(3, *hidden.shape[2:])
    for layer, given in zip(network.main[-2::-1], inputs[::-1], strict=True):
        if isinstance(layer, nn.LeakyReLU):
            back = back.clamp(min=0) * (given > 0)
        else:
            back = torch.autograd.functional.vjp(layer, given, back)[1]
    before = network(x)
    gradient = guided_gradient(network, x, 1)
    assert gradient.abs().max() > 0 and torch.allclose(gradient, back, atol=1e-6)
    assert torch.equal(network(x), before) and not x.requires_grad
    assert all(p.grad is None for p in network.parameters())


def test_a_guided_gradient_is_0_where_no_path_is_positive():
    network, x = make_discriminator(), torch.rand(2, 3, 32, 32) + 0.1
    assert (guided_gradient(network, x, 0).abs().amax(1) == 0).any()  # a place sees 22 of 32 pixels
    with torch.no_grad():
        network.main[0].weight.copy_(-network.main[0].weight.abs())  # below 0 all over
    assert torch.equal(guided_gradient(network, x, 0), torch.zeros_like(x))


def test_the_strongest_images_come_first():
    network = make_discriminator(8)
    with torch.no_grad():
        network.main[0].weight[:2] = torch.tensor([1.0, -1.0])[:, None, None, None]
    levels = np.random.default_rng(0).permutation(150).astype(np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (150, 8, 8, 3)).copy()
    brightest, darkest = strongest(network, images, 2, 5)
    assert levels[brightest].tolist() == [149, 148, 147, 146, 145]
    assert levels[darkest].tolist() == [0, 1, 2, 3, 4]
    assert strongest(network, images[:3], 2, 5).shape == (2, 3)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_gradients_image_is_grey_at_0_and_opaque(channels):
    gradient = torch.zeros(2, channels, 16, 16)
    gradient[1, 0, :4], gradient[1, 0, 4:8] = 1e-6, -0.5e-6
    nothing, image = as_image(gradient)
    assert image.shape == (16, 16, channels)
    assert set(nothing[..., :3].flatten()) == {128}
    assert [image[row, 0, 0] for row in (0, 4, 8)] == [255, 64, 128]
    assert channels < 4 or image[..., 3].min() == 255


# Figure 6: images without some of the generator's filters -----------------------------------------


def planted(count=4, depth=12, height=6, width=8):
    """Return maps of noise, where filter 5 is active in the marked part and filter 6 outside."""
    torch.manual_seed(0)
    maps = torch.rand(count, depth, height, width)
    marked = torch.zeros(count, 2 * height, 2 * width, dtype=torch.bool)
    marked[:, 4:8, 6:12] = True
    maps[:, 5, 2:4, 3:6] += 2
    maps[:, 6] += 2
    maps[:, 6, 2:4, 3:6] -= 2
    maps[:, 7] = 0
    return maps, marked


def test_the_regression_finds_a_planted_filter_however_large_activations_are():
    maps, marked = planted()
    weights = find_filters(maps, marked)
    assert weights.shape == (12,) and weights.argmax() == 5 and weights.argmin() == 6
    others = np.delete(weights, [5, 6])
    assert weights[5] > 4 * np.abs(others).max() and weights[7] == 0
    scale = torch.logspace(-4, 4, 12)[:, None, None]
    assert np.allclose(find_filters(maps * scale, marked), weights, atol=1e-3)
    assert np.array_equal(find_filters(maps, marked), weights)
    assert not np.allclose(find_filters(maps, marked, seed=1), weights)


@pytest.mark.parametrize("size", [32, (12, 16), (21, 30)])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_dropping_no_filters_changes_nothing_to_the_last_bit(size, norm):
    generator, z = make_generator(size, norm=norm), sample_latents(range(5), 8)
    for layer in range(1, len(activations_of(generator)) + 1):
        depth = maps_of(generator, z, layer).shape[1]
        same = without(generator, layer, np.zeros(depth, bool))
        assert torch.equal(generate(same, z), generate(generator, z))


def test_dropped_filters_are_0_everywhere_and_the_generator_stays_as_it_was():
    generator, z = make_generator(), sample_latents(range(70), 8)
    before, maps = generate(generator, z), maps_of(generator, z, 2)
    assert maps.shape == (70, 16, 8, 8) and maps.amax((0, 2, 3)).min() > 0
    dropped = np.arange(16) % 3 == 0
    lacking = without(generator, 2, dropped)
    kept = maps_of(lacking, z, 2)
    assert not kept[:, dropped].any() and torch.equal(kept[:, ~dropped], maps[:, ~dropped])
    assert torch.equal(generate(generator, z), before)
    assert not torch.allclose(generate(lacking, z), before, atol=1e-3)
    first, second = to_image(generate(without(generator, 1, np.ones(32, bool)), z[:2]))
    assert np.array_equal(first, second)  # as the latent no longer matters


@torch.no_grad()
def test_batch_norm_keeps_the_balance_that_the_lack_of_filters_would_upset():
    def second_norm(network):
        return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)][1]

    def look(layer, inputs, output):
        seen.append((inputs[0].clone(), output / layer.weight[:, None, None]))

    generator, z = make_generator(), sample_latents(range(1000, 1256), 8)
    recalibrate(generator, [z])
    lacking, seen = without(generator, 1, np.arange(32) % 2 == 0), []
    second_norm(lacking).register_forward_hook(look)
    lacking(z)
    [(given, normed)] = seen
    assert normed.mean((0, 2, 3)).abs().max() < 0.15
    assert (normed.var((0, 2, 3)) - 1).abs().max() < 0.2
    as_it_was = given.var((0, 2, 3)) / second_norm(generator).running_var
    assert (as_it_was - 1).abs().max() > 0.3


def test_boxes_are_read_and_marked_and_the_rest_is_dimmed():
    (three, box), (seven, whole) = read_boxes("3:1,2,5,4; 7,a.npy:0 : 0, 0, 16 ,12", (12, 16))
    assert (three, box, seven, whole) == ("3", (1, 2, 5, 4), "7,a.npy:0", (0, 0, 16, 12))
    marked = mark([[box, (0, 0, 1, 1)], [whole]], (12, 16))
    assert marked.shape == (2, 12, 16) and marked[0].sum() == 8 + 1 and marked[1].all()
    assert marked[0, 2:4, 1:5].all() and marked[0, 0, 0]
    images = np.full((2, 12, 16, 4), 200, np.uint8)
    dimmed = dim(images, marked)
    assert (dimmed[..., :3][marked] == 200).all() and (dimmed[..., :3][~marked] == 100).all()
    assert (dimmed[..., 3] == 200).all() and (images == 200).all()


# Networks of other programs -----------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "selu"])
@pytest.mark.parametrize("hidden", [[], [30]])
def test_hidden_layers_are_those_with_maps_whatever_their_activation(tmp_path, hidden, activation):
    widths = [9, *hidden, 128]
    linear = [nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(widths)]
    stranger = nn.Sequential(
        *linear, nn.Unflatten(1, (8, 4, 4)), *up(8, 6, *TAIL), nn.ConvTranspose2d(6, 3, *TAIL)
    )
    torch.save(at_random(stranger).state_dict(), tmp_path / "a.pth")
    generator = Generator.from_checkpoint(tmp_path / "a.pth", activation=activation)
    assert len(activations_of(generator)) == 2
    maps = [maps_of(generator, torch.zeros(1, 9), layer) for layer in (1, 2)]
    assert [tuple(one.shape) for one in maps] == [(1, 8, 4, 4), (1, 6, 8, 8)]


def test_the_last_maps_are_those_before_hidden_linear_layers(tmp_path):
    head = [nn.Flatten(), nn.Linear(8 * 16, 9), nn.LeakyReLU(0.2), nn.Linear(9, 1)]
    stranger = at_random(nn.Sequential(*plain_critic()[:-1], *head))
    torch.save(stranger.state_dict(), tmp_path / "a.pth")
    network = Discriminator.from_checkpoint(tmp_path / "a.pth")
    assert last_maps(network, torch.rand(2, 3, 32, 32)).shape == (2, 8, 4, 4)


def features(path, critic):
    """Run `features` on another program's generator of 16x16 colour images, and a discriminator."""
    generator = nn.Sequential(*up(9, 8, 4), *up(8, 6, *TAIL), nn.ConvTranspose2d(6, 3, *TAIL))
    networks = {"G": generator, "D": nn.Sequential(*critic)}
    torch.save({name: at_random(one).state_dict() for name, one in networks.items()}, path)
    words = ["features", "--filters", "2", "--seeds", "0-3", "--load_path", str(path)]
    parse_settings(COMMANDS, None, words).run()


def test_a_discriminator_takes_the_size_of_the_generators_images(tmp_path, capsys):
    features(tmp_path / "a.pth", [*plain_critic()[:-1], nn.Flatten(), nn.Linear(8 * 4, 1)])
    lines = [line for line in capsys.readouterr().out.splitlines() if "foreign" in line]
    assert len(lines) == 2 and all("16x16 pixels" in line for line in lines)


@pytest.mark.parametrize(
    ("critic", "says"),
    [
        ([nn.Conv2d(1, 4, *TAIL), *plain_critic()[2:]], "but a discriminator of 1"),
        ([*plain_critic()[:-1], nn.Flatten(), nn.Linear(8 * 64, 1)], "can't take 16x16 pixels"),
    ],
)
def test_a_discriminator_of_other_images_is_one_line(tmp_path, critic, says):
    with pytest.raises(CheckpointError, match=rf"a\.pth .*{says}"):
        features(tmp_path / "a.pth", critic)
