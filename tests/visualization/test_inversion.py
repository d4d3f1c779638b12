"""Inversion: an image that the generator draws is found again; photos, read as for training."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_generator, write_images
from PIL import Image

from dataset import load, to_image
from explore import COMMANDS
from models import Discriminator, Generator, generate, sample_latents
from preprocessing.sources import DataError
from serialization import checkpoint
from utils import SettingsError, parse_settings
from visualization.inversion import Invert, distances, invert, read_photos
from visualization.latents import read_latents

STEPS = 40


def make_networks(z_dist="normal", size=(12, 16)):
    torch.manual_seed(0)
    networks = Generator(4, 16, 3, size, z_dist=z_dist), Discriminator(8, 3, size)
    for network in networks:
        network.apply(
            lambda m: torch.nn.init.normal_(m.weight, 0, 0.5) if hasattr(m, "weight") else m
        )
    return networks


def difference(x, y):
    return (x - y).square().mean((1, 2, 3))


@pytest.mark.parametrize("z_dist", ["normal", "uniform"])
@pytest.mark.parametrize("compare", ["pixels", "maps"])
def test_a_drawn_image_is_found_again(z_dist, compare):
    generator, discriminator = make_networks(z_dist)
    wanted = generate(generator, sample_latents([2, 3], 4, z_dist))
    z = invert(generator, wanted, discriminator if compare == "maps" else None, 4, STEPS)
    assert z.shape == (2, 4) and z.dtype == torch.float32 and not z.requires_grad
    apart = difference(wanted, wanted.roll(1, 0))
    assert (difference(generate(generator, z), wanted) < 0.02 * apart).all()
    if z_dist == "uniform":
        assert z.abs().max() <= 1


def test_a_latent_follows_from_its_image_and_the_seed_alone():
    generator, discriminator = make_networks()
    wanted = generate(generator, sample_latents([1, 2], 4))
    together = invert(generator, wanted, discriminator, 2, 5)
    assert torch.equal(invert(generator, wanted[1:], discriminator, 2, 5), together[1:])
    assert not torch.equal(invert(generator, wanted, discriminator, 2, 5, seed=1), together)


def test_the_networks_are_left_as_they_were():
    networks = make_networks()
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in networks]
    wanted = generate(networks[0], sample_latents([1], 4))
    invert(networks[0].train(), wanted, networks[1].train(), 2, 3)
    for network, state in zip(networks, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_the_prior_holds_latents_to_the_length_of_those_to_draw_from(monkeypatch):
    generator, _ = make_networks()
    unlikely = generate(generator, 3 * sample_latents([2, 3], 4))
    lengths = []
    for prior in (0, 1):
        monkeypatch.setattr("visualization.inversion.PRIOR", prior)
        z = invert(generator, unlikely, None, 2, STEPS)
        lengths.append(z.square().mean(1))
    assert (lengths[0] > 2).all() and ((lengths[1] - 1).abs() < 0.3).all()


def test_more_steps_and_starts_come_nearer():
    generator, _ = make_networks()
    wanted = generate(generator, sample_latents(range(2), 4))
    far, near = (
        difference(generate(generator, invert(generator, wanted, None, *search)), wanted).mean()
        for search in ((1, 1), (4, STEPS))
    )
    assert near < 0.1 * far


def test_the_distance_is_0_of_the_image_itself_and_sees_what_the_discriminator_sees():
    _, discriminator = make_networks()
    x = torch.rand(3, 3, 12, 16) * 2 - 1
    pixels, both = distances(x[:1], None), distances(x[:1], discriminator.eval())
    assert torch.equal(pixels(x), (x - x[:1]).square().mean((1, 2, 3)))
    assert both(x)[0] == 0 and (both(x)[1:] > pixels(x)[1:]).all()


# Photos, and the command --------------------------------------------------------------------------


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
        bad.write_bytes(next(folder.glob("0*")).read_bytes()[:200])
    elif problem == "folder":
        bad.mkdir()
    with pytest.raises(DataError, match=r"bad\.png: .+"):
        read_photos([str(path) for path in (*sorted(folder.glob("0*")), bad)], (8, 8), 3)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_command_writes_the_sheet_and_latents_that_draw_it(tmp_path, channels, capsys):
    path = write_generator(tmp_path / "a.pth", channels)
    folder = write_images(tmp_path / "photos", 9)
    photos = [str(photo) for photo in sorted(folder.iterdir())]

    def run(*words):
        return parse_settings(COMMANDS, None, words).run()

    words = ["--load_path", path, "--steps", "3", "--starts", "2"]
    sheet = run("invert", *photos, *words, "--output", "new/photo.png")
    said = capsys.readouterr()
    assert said.out.count("levels") == 9 and "Warning" not in said.err
    z = np.load("new/photo.npy")
    assert z.shape == (9, 8) and z.dtype == np.float32
    generator = Generator.from_checkpoint(path)
    pixels = np.asarray(Image.open(sheet)).reshape(*Image.open(sheet).size[::-1], -1)
    last = read_latents("new/photo.npy:8", 8)[1]
    column, line = pixels.shape[1] // 8, 2 + 12 + 2 + 12 + 15 + 2
    photo, drawn = read_photos(photos[8:], (12, 16), channels), to_image(generate(generator, last))
    for image, top in ((photo, line), (drawn, line + 14)):
        part = pixels[top : top + 12, : column + 2]
        windows = np.lib.stride_tricks.sliding_window_view(part, 16, 1)
        assert (np.moveaxis(windows, 3, 2) == image[0][:, None]).all((0, 2, 3)).any()

    _, _, *words = shlex.split(Image.open(sheet).text["command"])
    run(*words, "--output", "again.png")
    assert np.array_equal(np.load("again.npy"), z)
    run("pick", "--load_path", path, "--seeds", "again.npy")


def test_a_checkpoint_without_a_discriminator_compares_pixels(tmp_path, capsys):
    path = write_generator(tmp_path / "a.pth", 3)
    contents = checkpoint.load(path)
    del contents["discriminator"]
    checkpoint.save(path, contents)
    photo = str(next(write_images(tmp_path / "photos", 1).iterdir()))
    parse_settings(COMMANDS, None, ["invert", photo, "--load_path", path, "--steps", "1"]).run()
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "pixels alone" in said


def test_a_sheet_that_is_too_large_is_refused_before_the_search(tmp_path):
    path = write_generator(tmp_path / "a.pth", 3)
    words = ["invert", "missing.png", "--load_path", path, "--scale", "1000"]
    with pytest.raises(SettingsError, match="too many"):
        parse_settings(COMMANDS, None, words).run()


def test_no_photo_is_written_over(tmp_path):
    folder, path = write_images(tmp_path / "photos", 2), write_generator(tmp_path / "a.pth", 3)
    photos = sorted(map(str, folder.iterdir()))
    before = [Path(photo).read_bytes() for photo in photos]
    with pytest.raises(SettingsError, match=r"--output .*0001\.png: is one of the photos"):
        Invert(load_path=path, photos=photos, steps=1, output=photos[1]).run()
    assert [Path(photo).read_bytes() for photo in photos] == before
