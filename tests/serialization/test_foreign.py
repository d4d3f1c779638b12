"""Networks of other programs: they open, whatever their layers are called, and draw the same."""

from itertools import pairwise

import pytest
import torch
from strangers import (
    TAIL,
    Example,
    Nested,
    Numbered,
    Projected,
    at_random,
    chain,
    down,
    plain_critic,
    same_images,
    up,
    z_dim_of,
)  # fmt: skip
from torch import nn
from torch.optim.swa_utils import AveragedModel

from models import Discriminator, Generator
from serialization import checkpoint
from serialization.checkpoint import CheckpointError

STRANGERS = {
    "example": lambda: Example(7, (16, 8, 6, 4)),
    "tconv, bn": Numbered,
    "convTr, batchNorm, biases": lambda: Numbered(("convTr", "batchNorm"), bias=True),
    "gen.0.0": Nested,
    "net.0.0": lambda: Nested("net"),
    "layer_stack": lambda: Nested("layer_stack"),
    "linear": Projected,
    "linear, flat norm": lambda: Projected("flat"),
    "linear, norm of maps": lambda: Projected("maps", (4, 2, 1)),
    "rectangle": lambda: Projected("maps", (4, 2, 1), (4, 6)),
    "linear in a row": lambda: nn.Sequential(
        nn.Linear(9, 8 * 16), nn.Unflatten(1, (8, 4, 4)), *up(8, 6, *TAIL), *up(6, 4, *TAIL),
        nn.ConvTranspose2d(4, 3, *TAIL), nn.Tanh(),
    ),
    "hidden linear": lambda: nn.Sequential(
        nn.Linear(9, 30), nn.BatchNorm1d(30), nn.ReLU(),
        nn.Linear(30, 8 * 49), nn.BatchNorm1d(8 * 49), nn.ReLU(),
        nn.Unflatten(1, (8, 7, 7)), *up(8, 4, *TAIL), nn.ConvTranspose2d(4, 1, *TAIL), nn.Tanh(),
    ),
    "7, 4, 3": lambda: chain(
        *up(8, 6, 7), *up(6, 5, *TAIL), *up(5, 4, *TAIL), nn.ConvTranspose2d(4, 1, 3, 1, 1),
        nn.Tanh(),
    ),
    "4, 3, 4, 4 to 28": lambda: chain(
        *up(8, 6, 4), *up(6, 5, 3, 2, 1), *up(5, 4, *TAIL), nn.ConvTranspose2d(4, 1, *TAIL),
        nn.Tanh(),
    ),
    "no padding, 28": lambda: chain(
        *up(8, 6, 3, 2), *up(6, 5, 4, 1), *up(5, 4, 3, 2), nn.ConvTranspose2d(4, 1, 4, 2), nn.Tanh()
    ),
    "no padding, 64": lambda: chain(
        *up(8, 7, 3, 2), *up(7, 6, 3, 2), *up(6, 5, 3, 2), *up(5, 4, 3, 2),
        nn.ConvTranspose2d(4, 3, 4, 2), nn.Tanh(),
    ),
    "5x5 at 7x7": lambda: nn.Sequential(
        nn.Linear(9, 8 * 49, bias=False), nn.BatchNorm1d(8 * 49), nn.ReLU(),
        nn.Unflatten(1, (8, 7, 7)), *up(8, 6, 5, 1, 2, bias=False), *up(6, 4, 5, 2, 2, 1),
        nn.ConvTranspose2d(4, 1, 5, 2, 2, 1), nn.Tanh(),
    ),
    "tail of 3x3 convolutions": lambda: chain(
        *up(8, 16, 4), *up(16, 8, *TAIL), *up(8, 8, *TAIL), *up(8, 4, *TAIL),
        nn.Conv2d(4, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, 1, 1), nn.Tanh(),
    ),
    "equal widths, biases": lambda: chain(
        *up(8, 8, 4), *up(8, 8, *TAIL), *up(8, 8, *TAIL), nn.ConvTranspose2d(8, 3, *TAIL), nn.Tanh()
    ),
    "norm of the image": lambda: chain(
        *up(8, 6, 4), *up(6, 5, *TAIL), *up(5, 3, *TAIL)[:2], nn.Tanh(),
    ),
    "96": lambda: chain(
        *up(8, 8, 6), *up(8, 7, *TAIL), *up(7, 6, *TAIL), *up(6, 5, *TAIL),
        nn.ConvTranspose2d(5, 3, *TAIL), nn.Tanh(),
    ),
    "128": lambda: Example(7, (16, 12, 8, 6, 4)),
    "upsampled": lambda: chain(
        *up(8, 12, 4), *upsampled(12, 8), *upsampled(8, 4), *upsampled(4, 3)[:2], nn.Tanh(),
    ),
    "upsampled from a linear layer": lambda: nn.Sequential(
        nn.Linear(9, 8 * 64), nn.Unflatten(1, (8, 8, 8)), nn.BatchNorm2d(8),
        *upsampled(8, 8), *upsampled(8, 4), nn.Conv2d(4, 3, 3, 1, 1), nn.Tanh(),
    ),
    "activation before norm": lambda: chain(
        *norm_last(*up(8, 6, 4)), *norm_last(*up(6, 5, *TAIL)), nn.ConvTranspose2d(5, 3, *TAIL),
        nn.Tanh(),
    ),
    "28 out of 32": lambda: chain(
        *up(8, 7, 4), *up(7, 6, *TAIL), *up(6, 5, *TAIL), *up(5, 4, *TAIL),
        nn.ConvTranspose2d(4, 1, 1, 1, 2), nn.Tanh(),
    ),
    "96, the last three times": lambda: chain(
        *up(8, 7, 4), *up(7, 6, *TAIL), *up(6, 5, *TAIL), *up(5, 4, *TAIL),
        nn.ConvTranspose2d(4, 3, 5, 3, 1), nn.Tanh(),
    ),
    "no norm": lambda: chain(
        *up(8, 6, 4, norm=False), *up(6, 5, *TAIL, norm=False), *up(5, 4, *TAIL, norm=False),
        nn.ConvTranspose2d(4, 1, *TAIL), nn.Tanh(),
    ),
}  # fmt: skip


def upsampled(before, after):
    return [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, 1, 1), nn.BatchNorm2d(after),
            nn.ReLU()]  # fmt: skip


def norm_last(layer, norm, activation):
    return layer, activation, norm


@pytest.fixture
def pair():
    """A small generator and its discriminator, of 64x64 pixels."""
    torch.manual_seed(1)
    return at_random(Example(7, (16, 8, 6, 4))), at_random(Discriminator(4, 3, 64))


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_draws_its_own_images(tmp_path, name):
    stranger = at_random(STRANGERS[name]())
    torch.save(stranger.state_dict(), tmp_path / "a.pth")
    same_images(tmp_path / "a.pth", stranger, z_dim_of(stranger))


@pytest.mark.parametrize("name", STRANGERS)
def test_the_order_of_a_file_does_not_matter(tmp_path, name):
    stranger = at_random(STRANGERS[name]())
    state = stranger.state_dict()
    torch.save({key: state[key] for key in sorted(state)}, tmp_path / "a.pth")
    same_images(tmp_path / "a.pth", stranger, z_dim_of(stranger))


@pytest.mark.parametrize("name", ["example", "linear, norm of maps", "gen.0.0"])
def test_names_that_tell_nothing_are_chained_by_their_channels(tmp_path, name):
    stranger = at_random(STRANGERS[name]())
    layers = dict.fromkeys(key.rpartition(".")[0] for key in stranger.state_dict())
    names = dict(zip(layers, "qwertyuiopasdfg", strict=False))
    state = {
        f"{names[layer]}.{parameter}": tensor
        for (layer, _, parameter), tensor in (
            (key.rpartition("."), tensor) for key, tensor in stranger.state_dict().items()
        )
    }
    torch.save({key: state[key] for key in sorted(state)}, tmp_path / "a.pth")
    same_images(tmp_path / "a.pth", stranger, z_dim_of(stranger))


NESTS = {
    "generator": lambda g, d: {"generator": g, "discriminator": d, "params": {"nz": 7}},
    "netG_state_dict": lambda g, d: {"epoch": 3, "netD_state_dict": d, "netG_state_dict": g},
    "gen_state_dict": lambda g, d: {"gen_state_dict": g, "fixed_noise": torch.randn(3, 7)},
    "G": lambda g, d: {"models": {"D": d, "G": g}},
    "model": lambda g, d: {"model": g},
    "list": lambda g, d: [d, g],
    "flat": lambda g, d: {f"generator.{k}": v for k, v in g.items()}
    | {f"discriminator.{k}": v for k, v in d.items()} | {"validation_z": torch.zeros(3, 7)},
    "lightning": lambda g, d: {"state_dict": {f"netD.{k}": v for k, v in d.items()}
                               | {f"netG.module.{k}": v for k, v in g.items()}},
    "DDP": lambda g, d: {f"module.{k}": v for k, v in g.items()},
    "compiled": lambda g, d: {"netG": {f"_orig_mod.{k}": v for k, v in g.items()}},
    "without counters": lambda g, d: {k: v for k, v in g.items() if "num_batches" not in k},
    "parameters": lambda g, d: {k: nn.Parameter(v, False) for k, v in g.items()},
}  # fmt: skip


@pytest.mark.parametrize("nest", NESTS)
@pytest.mark.parametrize("legacy", [False, True])
def test_both_networks_are_found_wherever_they_lie(tmp_path, pair, nest, legacy):
    generator, discriminator = pair
    contents = NESTS[nest](*(dict(network.state_dict()) for network in pair))
    path = tmp_path / "a.pth"
    torch.save(contents, path, _use_new_zipfile_serialization=not legacy)
    same_images(path, generator, 7)
    if nest in ("generator", "netG_state_dict", "G", "list", "flat", "lightning"):
        same_features(path, discriminator)
    else:
        with pytest.raises(
            CheckpointError, match=r"a\.pth holds a generator, but no discriminator"
        ):
            Discriminator.from_checkpoint(path)


@torch.no_grad()
def same_features(path, stranger):
    network = Discriminator.from_checkpoint(path)
    assert type(network) is Discriminator and not network.training
    x = torch.rand(4, network.channels, *network.image_size) * 2 - 1
    assert torch.allclose(network(x), stranger(x).flatten(), atol=1e-4)
    maps = network.feature_maps(x)
    sizes = [tuple(one.shape[2:]) for one in maps]
    assert all(later < earlier for earlier, later in pairwise(sizes))
    return network


def optimizers(network):
    optimizer = torch.optim.Adam(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def test_optimizers_and_averages_beside_a_network(tmp_path, pair):
    generator, average = pair[0], at_random(Example(7, (16, 8, 6, 4)), seed=5)
    contents = {
        "optimizerG": optimizers(at_random(Example(7, (16, 8, 6, 4)))), "loss": [1.5, 2],
        "G": generator.state_dict(), "G_ema": AveragedModel(average).state_dict(),
    }  # fmt: skip
    torch.save(contents, tmp_path / "a.pth")
    same_images(tmp_path / "a.pth", average, 7)
    same_images(tmp_path / "a.pth", generator, 7, average=False)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision(tmp_path, pair, kind):
    generator = pair[0].to(kind)
    torch.save(generator.state_dict(), tmp_path / "a.pth")
    same_images(tmp_path / "a.pth", generator.float(), 7)


def test_a_file_from_a_gpu_opens_without_one(tmp_path, pair):
    """Its storages say cuda:0, also where there is no such device."""
    path = tmp_path / "a.pth"
    torch.save(pair[0].state_dict(), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    assert path.stat().st_size > len(data)
    same_images(path, pair[0], 7)


def leaky():
    layers = [
        *up(8, 6, 4, norm=False),
        *up(6, 5, *TAIL, norm=False),
        nn.ConvTranspose2d(5, 3, *TAIL),
    ]
    return chain(*(nn.LeakyReLU(0.2) if isinstance(m, nn.ReLU) else m for m in layers), nn.Tanh())


def test_what_no_file_says_is_said_and_can_be_given(tmp_path, capsys):
    stranger, path = at_random(leaky()), tmp_path / "a.pth"
    torch.save(stranger.state_dict(), path)
    same_images(path, stranger, 8, activation="leaky_relu")
    assert Generator.from_checkpoint(path, z_dist="uniform").z_dist == "uniform"
    capsys.readouterr()
    Generator.from_checkpoint(path)
    [line] = capsys.readouterr().out.splitlines()
    for said in ("8-6-5-3", "--activation relu", "--z_dist normal", "tanh", "--image_size 16x16"):
        assert said in line
    doubles = at_random(
        chain(*up(8, 6, 4), *up(6, 5, 4, 1), nn.ConvTranspose2d(5, 1, *TAIL), nn.Tanh())
    )
    torch.save(doubles.state_dict(), path)
    same_images(path, doubles, 8, image_size=(14, 14))
    with pytest.raises(CheckpointError, match="can't draw 17x40 pixels: its kernels are 4x4"):
        Generator.from_checkpoint(path, image_size=(17, 40))


def test_our_own_checkpoints_say_it_all(tmp_path):
    config = {"z_dim": 6, "features": 4, "channels": 1, "image_size": "16", "max_features": 32,
              "norm": "batch", "activation": "relu", "z_dist": "normal"}  # fmt: skip
    ours = Generator(6, 4, 1, 16, 32)
    checkpoint.save(tmp_path / "a.pth", {"config": config, "generator": ours.state_dict()})
    assert type(Generator.from_checkpoint(tmp_path / "a.pth")) is Generator
    with pytest.raises(CheckpointError, match="leave out --activation"):
        Generator.from_checkpoint(tmp_path / "a.pth", activation="relu")


# Discriminators ----------------------------------------------------------------------------------


def normed(norm, layers):
    return [norm(layer) if isinstance(layer, nn.Conv2d) else layer for layer in layers]


CRITICS = {
    "plain": plain_critic,
    "old spectral norm": lambda: normed(nn.utils.spectral_norm, plain_critic()),
    "spectral norm": lambda: normed(nn.utils.parametrizations.spectral_norm, plain_critic()),
    "weight norm": lambda: normed(nn.utils.parametrizations.weight_norm, plain_critic()),
    "linear": lambda: [*plain_critic()[:-1], nn.Flatten(), nn.Linear(8 * 16, 1)],
    "sigmoid of 5x5": lambda: [
        *down(1, 4, 5, 2, 2), *down(4, 8, 5, 2, 2), nn.Flatten(), nn.Linear(8 * 49, 1)
    ],
    "no padding, 28": lambda: [*down(1, 4, 4, 2), *down(4, 8, 4, 2), nn.Conv2d(8, 1, 4, 2)],
    "norm after dropout": lambda: [
        *down(3, 4, *TAIL, norm=False), nn.Conv2d(4, 8, *TAIL), nn.LeakyReLU(0.2), nn.Dropout2d(),
        nn.BatchNorm2d(8), *down(8, 8, *TAIL), nn.Conv2d(8, 1, 4),
    ],
    "hidden linear": lambda: [*plain_critic()[:-1], nn.Sequential(
        nn.Flatten(), nn.Linear(8 * 16, 9), nn.BatchNorm1d(9), nn.LeakyReLU(0.2), nn.Linear(9, 1)
    )],
    "3x3 between": lambda: [
        *down(3, 4, 3, 1, 1), *down(4, 4, *TAIL), *down(4, 8, 3, 1, 1), *down(8, 8, *TAIL),
        *down(8, 9, 3, 1, 1), *down(9, 9, *TAIL), nn.Flatten(), nn.Linear(9 * 16, 1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CRITICS)
def test_a_stranger_judges_as_it_did(tmp_path, name):
    stranger = nn.Sequential(*CRITICS[name]())
    if "spectral" not in name and "weight" not in name:
        at_random(stranger)
    stranger.eval()
    torch.save({"netD": stranger.state_dict()}, tmp_path / "a.pth")
    same = Discriminator.from_checkpoint(tmp_path / "a.pth")
    size = (28, 28) if "28" in name or "5x5" in name else (32, 32)
    assert same.image_size == size
    x = torch.rand(4, same.channels, *size)
    with torch.no_grad():
        assert torch.allclose(same(x), stranger(x).flatten(), atol=1e-5)
        assert len(same.feature_maps(x)) == sum(isinstance(m, nn.LeakyReLU) for m in stranger)
