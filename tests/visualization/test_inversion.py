"""Inversion: an image that the generator made is found again; photos, read as for training."""

import numpy as np
import pytest
import torch
from conftest import write_images

from dataset import load
from models import Discriminator, Generator, generate, sample_latents
from preprocessing.sources import DataError
from visualization.inversion import invert, read_photos

STEPS = 40


def make_networks(z_dist="normal"):
    torch.manual_seed(0)
    networks = Generator(4, 16, 3, (12, 16), z_dist=z_dist), Discriminator(8, 3, (12, 16))
    for network in networks:
        network.apply(
            lambda m: torch.nn.init.normal_(m.weight, 0, 0.5) if hasattr(m, "weight") else m
        )
    return networks


@pytest.mark.parametrize("z_dist", ["normal", "uniform"])
@pytest.mark.parametrize("compare", ["pixels", "maps"])
def test_a_generated_image_is_found_again(z_dist, compare):
    generator, discriminator = make_networks(z_dist)
    wanted = generate(generator, sample_latents([2, 3], 4, z_dist))
    z = invert(generator, wanted, discriminator if compare == "maps" else None, 4, STEPS)
    assert z.shape == (2, 4) and z.dtype == torch.float32 and not z.requires_grad
    assert z_dist == "normal" or z.abs().max() <= 1
    difference = (generate(generator, z) - wanted).square().mean((1, 2, 3))
    assert (difference < 0.02 * (wanted - wanted.roll(1, 0)).square().mean((1, 2, 3))).all()


def test_a_latent_follows_from_its_image_and_the_seed_alone_and_networks_stay_as_they_were():
    networks = make_networks()
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in networks]
    wanted = generate(networks[0], sample_latents([1, 2], 4))
    together = invert(networks[0].train(), wanted, networks[1].train(), 2, 5)
    assert torch.equal(invert(networks[0], wanted[1:], networks[1], 2, 5), together[1:])
    assert not torch.equal(invert(networks[0], wanted, networks[1], 2, 5, seed=1), together)
    for network, state in zip(networks, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_the_prior_holds_latents_to_the_length_of_those_of_training(monkeypatch):
    generator, _ = make_networks()
    unlikely = generate(generator, 3 * sample_latents([2, 3], 4))
    lengths = []
    for prior in (0, 1):
        monkeypatch.setattr("visualization.inversion.PRIOR", prior)
        lengths.append(invert(generator, unlikely, None, 2, STEPS).square().mean(1))
    assert (lengths[0] > 2).all() and ((lengths[1] - 1).abs() < 0.3).all()


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("RGBA", 4), ("RGB", 1)])
def test_photos_are_read_as_for_training(tmp_path, mode, channels):
    folder = write_images(tmp_path / "photos", 3, mode=mode)
    photos = read_photos([str(path) for path in sorted(folder.iterdir())], (12, 16), channels)
    assert photos.shape == (3, 12, 16, channels)
    assert np.array_equal(photos, load(str(folder), (12, 16), channels))


@pytest.mark.parametrize("problem", ["missing", "broken", "folder"])
def test_a_photo_that_cannot_be_read_is_named(tmp_path, problem):
    folder = write_images(tmp_path / "photos", 2)
    bad = folder / "bad.png"
    if problem == "broken":
        bad.write_bytes((folder / "0000.png").read_bytes()[:200])
    elif problem == "folder":
        bad.mkdir()
    with pytest.raises(DataError, match=r"bad\.png: .+"):
        read_photos([str(folder / "0000.png"), str(bad)], (8, 8), 3)
