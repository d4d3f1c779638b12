"""What filters stand for: guided backpropagation, filters that draw what is marked, and without."""

import numpy as np
import pytest
import torch
from conftest import write_generator, write_images
from PIL import Image
from strangers import TAIL, at_random, plain_critic, up
from torch import nn

from dataset import to_image
from explore import COMMANDS
from models import Discriminator, Generator, generate, recalibrate, sample_latents
from serialization.checkpoint import CheckpointError
from serialization.construct import ACTIVATIONS
from utils import SettingsError, parse_settings
from visualization.filters import (
    Box,
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


# What the discriminator's filters see -------------------------------------------------------------


def test_the_last_maps_are_the_last_of_the_feature_maps():
    network, x = make_discriminator(), torch.rand(2, 3, 32, 32)
    assert torch.equal(last_maps(network, x), network.feature_maps(x)[-1])


def test_with_one_convolution_guided_backpropagation_gives_the_filter_where_it_answers_most():
    network = make_discriminator(8)  # an answer of 4x4 places, of 4x4 pixels two apart
    x = torch.zeros(1, 3, 8, 8)
    filter_ = network.main[0].weight[2].detach()
    x[0, :, 3:7, 1:5] = filter_
    gradient = guided_gradient(network, x, 2)
    expected = torch.zeros_like(x)
    expected[0, :, 3:7, 1:5] = filter_
    assert torch.allclose(gradient, expected)


def test_guided_backpropagation_is_that_of_relus_whose_gradient_is_clipped():
    """Beside a second way to say it: layer by layer, backwards from the strongest answer."""
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
    gradient = guided_gradient(network, x, 1)
    assert gradient.abs().max() > 0 and torch.allclose(gradient, back, atol=1e-6)
    plain = torch.autograd.functional.vjp(
        lambda x: network.feature_maps(x)[-1][:, 1].amax((1, 2)), x, torch.ones(3)
    )[1]
    assert not torch.allclose(gradient, plain, atol=1e-4)


def test_a_guided_gradient_is_0_where_no_path_is_positive():
    network, x = make_discriminator(), torch.rand(2, 3, 32, 32) + 0.1
    beyond = guided_gradient(network, x, 0).abs().amax(1) == 0
    assert beyond.any()  # the answer's place sees 22 of 32 pixels
    with torch.no_grad():
        network.main[0].weight.copy_(-network.main[0].weight.abs())  # answers below 0 all over
    assert torch.equal(guided_gradient(network, x, 0), torch.zeros_like(x))


def test_looking_leaves_the_network_as_it_was():
    network, x = make_discriminator(), torch.rand(2, 3, 32, 32)
    before = network(x)
    guided_gradient(network, x, 0)
    assert not any(layer._forward_hooks for layer in network.modules())
    assert torch.equal(network(x), before) and not x.requires_grad
    assert all(p.grad is None for p in network.parameters())


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
    with pytest.raises(ValueError, match="has 4"):
        strongest(network, images, 5, 5)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_gradients_image_is_grey_at_0_and_opaque(channels):
    gradient = torch.zeros(2, channels, 16, 16)
    gradient[1, 0, :4], gradient[1, 0, 4:8] = 1e-6, -0.5e-6
    nothing, image = as_image(gradient)
    assert image.shape == (16, 16, channels)
    assert set(nothing[..., :3].flatten()) == {128}
    assert [image[row, 0, 0] for row in (0, 4, 8)] == [255, 64, 128]
    assert channels < 4 or image[..., 3].min() == 255


# What the generator's filters draw ----------------------------------------------------------------


def planted(count=4, depth=12, height=6, width=8):
    """Return maps of noise, of which filter 5 answers in the marked part and filter 6 outside."""
    torch.manual_seed(0)
    maps = torch.rand(count, depth, height, width)
    marked = torch.zeros(count, 2 * height, 2 * width, dtype=torch.bool)
    marked[:, 4:8, 6:12] = True
    maps[:, 5, 2:4, 3:6] += 2
    maps[:, 6] += 2
    maps[:, 6, 2:4, 3:6] -= 2
    maps[:, 7] = 0
    return maps, marked


def test_the_regression_finds_a_planted_filter():
    maps, marked = planted()
    weights = find_filters(maps, marked)
    assert weights.shape == (12,) and weights.argmax() == 5 and weights.argmin() == 6
    others = np.delete(weights, [5, 6])
    assert weights[5] > 4 * np.abs(others).max() and weights[7] == 0


def test_the_sign_of_a_weight_does_not_depend_on_how_large_activations_are():
    maps, marked = planted()
    scale = torch.logspace(-4, 4, 12)[:, None, None]
    assert np.allclose(find_filters(maps * scale, marked), find_filters(maps, marked), atol=1e-3)


def test_the_places_outside_follow_from_the_seed():
    maps, marked = planted()
    assert np.array_equal(find_filters(maps, marked, 1), find_filters(maps, marked, 1))
    assert not np.allclose(find_filters(maps, marked, 1), find_filters(maps, marked, 2))


def test_marks_that_leave_nothing_to_tell_apart_are_refused():
    maps, marked = planted()
    for nothing in (marked & False, marked | True):
        with pytest.raises(ValueError, match="inside"):
            find_filters(maps, nothing)


@pytest.mark.parametrize("size", [32, (12, 16), (21, 30)])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_dropping_no_filters_changes_nothing_to_the_last_bit(size, norm):
    generator, z = make_generator(size, norm=norm), sample_latents(range(5), 8)
    for layer, activation in enumerate(activations_of(generator), 1):
        depth = maps_of(generator, z, layer).shape[1]
        same = without(generator, layer, np.zeros(depth, bool))
        assert isinstance(activation, nn.ReLU)
        assert torch.equal(generate(same, z), generate(generator, z))


def test_dropped_filters_are_0_everywhere_and_the_generator_stays_as_it_was():
    generator, z = make_generator(), sample_latents(range(70), 8)
    before = generate(generator, z)
    maps = maps_of(generator, z, 2)
    assert maps.shape == (70, 16, 8, 8) and maps.amax((0, 2, 3)).min() > 0
    dropped = np.arange(16) % 3 == 0
    lacking = without(generator, 2, dropped)
    kept = maps_of(lacking, z, 2)
    assert not kept[:, dropped].any() and torch.equal(kept[:, ~dropped], maps[:, ~dropped])
    assert torch.equal(generate(generator, z), before)
    assert not torch.allclose(generate(lacking, z), before, atol=1e-3)


@torch.no_grad()
def test_batch_norm_keeps_the_balance_that_the_lack_of_filters_would_upset():
    def second_norm(network):
        return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)][1]

    def look(layer, given, answer):
        seen.append((given[0].clone(), answer / layer.weight[:, None, None]))

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


def test_boxes_are_read_and_marked():
    boxes = read_boxes("3:1,2,5,4; 7,a.npy:0 : 0, 0, 16 ,12", (12, 16))
    assert boxes == [("3", Box(1, 2, 5, 4)), ("7,a.npy:0", Box(0, 0, 16, 12))]
    marked = mark([[boxes[0][1], Box(0, 0, 1, 1)], [boxes[1][1]]], (12, 16))
    assert marked.shape == (2, 12, 16) and marked[0].sum() == 8 + 1 and marked[1].all()
    assert marked[0, 2:4, 1:5].all() and marked[0, 0, 0]


def test_what_is_not_marked_is_dimmed():
    images = np.full((1, 4, 6, 4), 200, np.uint8)
    dimmed = dim(images, mark([[Box(1, 0, 3, 2)]], (4, 6)))
    assert (dimmed[0, :2, 1:3] == 200).all() and (dimmed[..., 3] == 200).all()
    assert dimmed[..., 0].sum() == 4 * 200 + 20 * 100 and (images == 200).all()


# The commands, whose sheets are also in test_explore.py -------------------------------------------


def run(path, words):
    return parse_settings(COMMANDS, None, [*words.split(), "--load_path", path]).run()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("dropout --boxes 3", "--boxes 3: write it like"),
        ("dropout --boxes 3:1,2,5", "write it like"),
        ("dropout --boxes 3:5,2,1,4", "16 pixels wide and 12 high"),
        ("dropout --boxes 3:0,0,17,4", "16 pixels wide and 12 high"),
        (f"dropout --boxes 3:0,0,{'9' * 5000},4", "write it like"),
        ("dropout --boxes 3:0,0,16,12", "places inside"),
        ("dropout --boxes cat:0,0,6,4", "--boxes"),
        ("dropout --boxes 3:0,0,6,4 --layer 2", "--layer 2"),
        ("features --seeds 0-3 --filters 17", "--filters 17: the last convolution has 16"),
        ("features --seeds 0-3 --data digits", "--seeds, --data"),
    ],
)
def test_a_mistake_names_its_flag(tmp_path, words, says):
    path = write_generator(tmp_path / "a.pth", 3)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SettingsError) as refused:
        run(path, words)
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_features_of_a_data_set(tmp_path):
    path, folder = write_generator(tmp_path / "a.pth", 1), write_images(tmp_path / "cats", 3)
    sheet = Image.open(run(path, f"features --data {folder} --filters 2 --shown 9"))
    assert sheet.mode == "L" and sheet.size[1] == 2 + 15 + 2 + 4 * (12 + 2)


def test_a_box_of_a_file_of_latents_marks_all_its_rows(tmp_path, capsys):
    path = write_generator(tmp_path / "a.pth", 3)
    np.save(tmp_path / "z.npy", sample_latents([3, 4], 8).numpy())
    first = run(path, f"dropout --boxes {tmp_path}/z.npy:0,0,6,4 --scale 4 --output a.png")
    second = run(path, "dropout --boxes 3-4:0,0,6,4 --scale 4 --output b.png")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Layer")]
    assert len(said) == 2 and said[0] == said[1]
    lower = [np.asarray(Image.open(sheet))[-50:] for sheet in (first, second)]
    assert np.array_equal(*lower)


def test_without_any_filter_of_a_layer_the_latent_no_longer_matters():
    generator, z = make_generator(), sample_latents([1, 2], 8)
    first, second = to_image(generate(without(generator, 1, np.ones(32, bool)), z))
    assert np.array_equal(first, second)


# Networks of other programs -----------------------------------------------------------------------


STRANGERS = {
    "transposed": lambda: [nn.Unflatten(1, (9, 1, 1)), *up(9, 8, 4)],
    "linear": lambda: [
        nn.Linear(9, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Unflatten(1, (8, 4, 4))
    ],
    "hidden linear": lambda: [
        nn.Linear(9, 30), nn.ReLU(), nn.Linear(30, 128), nn.ReLU(), nn.Unflatten(1, (8, 4, 4))
    ],
}  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("first", STRANGERS)
def test_hidden_layers_are_those_with_maps_whatever_their_activation(tmp_path, first, activation):
    stranger = nn.Sequential(*STRANGERS[first](), *up(8, 6, *TAIL), nn.ConvTranspose2d(6, 3, *TAIL))
    torch.save(at_random(stranger).state_dict(), tmp_path / "a.pth")
    generator = Generator.from_checkpoint(tmp_path / "a.pth", activation=activation)
    assert len(activations_of(generator)) == 2
    maps = [maps_of(generator, torch.zeros(1, 9), layer) for layer in (1, 2)]
    assert [tuple(one.shape) for one in maps] == [(1, 8, 4, 4), (1, 6, 8, 8)]


def test_the_last_maps_are_those_before_hidden_linear_layers(tmp_path):
    head = [nn.Flatten(), nn.Linear(8 * 16, 9), nn.LeakyReLU(0.2), nn.Linear(9, 1)]
    stranger = at_random(nn.Sequential(*plain_critic()[:-1], *head))
    torch.save(stranger.state_dict(), tmp_path / "a.pth")
    network, x = Discriminator.from_checkpoint(tmp_path / "a.pth"), torch.rand(2, 3, 32, 32)
    assert last_maps(network, x).shape == (2, 8, 4, 4)
    assert strongest(network, to_image(x), 2, 1).shape == (2, 1)


def write_both(path, critic):  # beside a generator of 16x16 colour images
    generator = nn.Sequential(*up(9, 8, 4), *up(8, 6, *TAIL), nn.ConvTranspose2d(6, 3, *TAIL))
    networks = {"G": generator, "D": nn.Sequential(*critic)}
    torch.save({name: at_random(one).state_dict() for name, one in networks.items()}, path)
    return str(path)


def test_a_discriminator_takes_the_images_that_the_generator_draws(tmp_path, capsys):
    path = write_both(tmp_path / "a.pth", [*plain_critic()[:-1], nn.Flatten(), nn.Linear(8 * 4, 1)])
    assert Discriminator.from_checkpoint(path).image_size == (32, 32)  # the likeliest, by itself
    capsys.readouterr()
    run(path, "features --filters 2 --seeds 0-3")
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
    path = write_both(tmp_path / "a.pth", critic)
    with pytest.raises(CheckpointError, match=rf"a\.pth .*{says}"):
        run(path, "features --filters 2 --seeds 0-3")
