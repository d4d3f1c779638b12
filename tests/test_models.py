"""The networks: the paper's architecture and initialisation, names, sizes, and drawing."""

import numpy as np
import pytest
import torch
from torch import nn

import models
from models import Discriminator, Generator, generate, random_latents, sample_latents

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return Generator(100, 64, 3), Discriminator(64, 3)


def test_parameter_counts_are_those_of_the_pytorch_example(networks):
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert counts == [3_576_704, 2_765_568]


def test_state_dict_keys_are_those_of_the_pytorch_example(networks):
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def keys(convolutions, norms):
        names = [f"main.{i}.weight" for i in convolutions]
        return set(names + [f"main.{i}.{name}" for i in norms for name in statistics])

    generator, discriminator = networks
    assert set(generator.state_dict()) == keys([0, 3, 6, 9, 12], [1, 4, 7, 10])
    assert set(discriminator.state_dict()) == keys([0, 2, 5, 8, 11], [3, 6, 9])


def test_features_128_gives_the_widths_of_the_paper():
    generator = Generator(100, 128, 3)
    widths = [layer.out_channels for layer in generator.main if isinstance(layer, CONVOLUTIONS)]
    assert widths == [1024, 512, 256, 128, 3]


def test_max_features_bounds_both_networks():
    for network in (Generator(8, 16, 3, 64, max_features=24), Discriminator(16, 3, 64, 24)):
        widths = [layer.out_channels for layer in network.main if isinstance(layer, CONVOLUTIONS)]
        assert max(widths) == 24


def test_initialisation_is_the_papers(networks):
    for network in networks:
        for layer in network.modules():
            if isinstance(layer, CONVOLUTIONS):
                mean, deviation, bound = 0.0, 0.02, 4 * 0.02 / layer.weight.numel() ** 0.5
            elif isinstance(layer, nn.BatchNorm2d):
                mean, deviation, bound = 1.0, 0.02, 4 * 0.02 / layer.weight.numel() ** 0.5
                assert not layer.bias.any()
            else:
                continue
            assert abs(layer.weight.mean() - mean) < bound
            assert abs(layer.weight.std() - deviation) < bound


def test_biases_start_at_zero_without_norm():
    for network in (Generator(8, 4, 3, 16, norm="none"), Discriminator(4, 3, 16, norm="none")):
        biases = [layer.bias for layer in network.main if isinstance(layer, CONVOLUTIONS)]
        assert biases and all(bias is not None and not bias.any() for bias in biases)
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


def test_architecture_follows_section_3(networks):
    generator, discriminator = networks
    for network in networks:
        for layer in network.modules():
            assert "Pool" not in type(layer).__name__
            assert not isinstance(layer, nn.Linear)
            if isinstance(layer, nn.BatchNorm2d):
                assert (layer.eps, layer.momentum) == (1e-5, 0.1)
    assert isinstance(generator.main[-1], nn.Tanh)
    assert isinstance(generator.main[-2], nn.ConvTranspose2d)  # no batch norm at G's output
    assert isinstance(discriminator.main[1], nn.LeakyReLU)  # none at D's input
    assert isinstance(discriminator.main[-1], nn.Conv2d)  # logits: no sigmoid
    inner = generator.main[:-2]
    assert [type(layer) for layer in inner] == [nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU] * 4
    slopes = {m.negative_slope for m in discriminator.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.2}


def test_generator_activation_is_a_choice():
    layers = list(Generator(8, 4, 1, 16, activation="leaky_relu").modules())
    assert any(isinstance(layer, nn.LeakyReLU) for layer in layers)
    assert not any(isinstance(layer, nn.ReLU) for layer in layers)


@pytest.mark.parametrize("size", [8, 15, 28, 32, 64, 100, 256, (64, 96), (48, 64), (9, 255)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_shapes_for_any_size(size, channels):
    generator, discriminator = Generator(5, 2, channels, size), Discriminator(2, channels, size)
    height, width = (size, size) if isinstance(size, int) else size
    for z in (torch.randn(2, 5), torch.randn(2, 5, 1, 1)):
        x = generator(z)
        assert x.shape == (2, channels, height, width)
        assert x.abs().max() <= 1
    assert discriminator(x).shape == (2,)


@pytest.mark.parametrize(
    ("size", "first"), [(64, (4, 4)), (28, (7, 7)), ((64, 96), (4, 6)), (8, (4, 4)), (15, (7, 7))]
)
def test_the_first_map_is_the_smallest_of_at_least_4x4(size, first):
    assert Generator(5, 2, 1, size).main[0].kernel_size == first
    assert Discriminator(2, 1, size).main[-1].kernel_size == first


@pytest.mark.parametrize("size", [7, 257, (64, 4)])
def test_sizes_out_of_range_are_refused(size):
    for network in (lambda: Generator(5, 2, 1, size), lambda: Discriminator(2, 1, size)):
        with pytest.raises(ValueError, match="image_size"):
            network()


def test_unknown_norm_and_activation_are_refused():
    with pytest.raises(ValueError, match="norm"):
        Generator(norm="bacth")
    with pytest.raises(ValueError, match="activation"):
        Generator(activation="elu")


def test_feature_maps_are_all_convolutions_but_the_logit_after_activation():
    discriminator = Discriminator(4, 3, (64, 96)).eval()
    x = torch.randn(2, 3, 64, 96)
    maps = discriminator.feature_maps(x)
    shapes = [(2, 4, 32, 48), (2, 8, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6)]
    assert [tuple(m.shape) for m in maps] == shapes
    # The last one leads to the logit, and the first is the activation of the first convolution.
    assert torch.equal(discriminator.main[-1](maps[-1]).flatten(), discriminator(x))
    first = nn.functional.leaky_relu(discriminator.main[0](x), 0.2)
    assert torch.equal(maps[0], first)


def test_latents_follow_from_their_seed_alone():
    together = sample_latents([3, 7, 2**40], 100)
    assert together.shape == (3, 100) and together.dtype == torch.float32
    assert torch.equal(sample_latents([7], 100)[0], together[1])
    assert torch.equal(sample_latents([2**40], 100)[0], together[2])
    assert not torch.equal(together[0], together[1])
    assert sample_latents([], 100).shape == (0, 100)


def test_latents_have_the_distribution_that_is_named():
    random = np.random.default_rng(0)
    normal = random_latents(random, 1000, 100)
    assert abs(normal.mean()) < 0.02 and abs(normal.std() - 1) < 0.02 and normal.max() > 3
    uniform = random_latents(random, 1000, 100, "uniform")
    assert uniform.min() < -0.99 and 0.99 < uniform.max() <= 1
    assert abs(uniform.mean()) < 0.02 and abs(uniform.std() - 3**-0.5) < 0.02
    with pytest.raises(ValueError, match="z_dist"):
        random_latents(random, 1, 1, "gaussian")


@pytest.mark.parametrize("size", [28, 32, (48, 64), 64])
def test_an_image_is_the_same_alone_and_in_any_batch(size):
    torch.manual_seed(0)
    generator = Generator(100, 8, 3, size)
    z = sample_latents(range(models.GENERATE_BATCH + 9), 100)
    together = generate(generator, z)
    assert together.shape[0] == models.GENERATE_BATCH + 9
    for i in (0, 5, models.GENERATE_BATCH, models.GENERATE_BATCH + 8):
        assert torch.equal(generate(generator, z[i : i + 1])[0], together[i])
    order = torch.randperm(len(z))
    assert torch.equal(generate(generator, z[order]), together[order])


def test_drawing_leaves_the_generator_as_it_was():
    generator = Generator(8, 4, 1, 16)
    generator(torch.randn(16, 8))  # running statistics of some training
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    first = generate(generator, sample_latents(range(3), 8))
    assert generator.training and not first.requires_grad
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())
    generator.eval()
    assert torch.equal(generate(generator, sample_latents(range(3), 8)), first)
    assert not generator.training
