"""Arrays of images: tensors, grids, batches by their position, and the doctor."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import utils
from dataset import examine, find_alike, to_image, to_tensor
from preprocessing.cache import open_cached
from preprocessing.sources import find
from utils import make_grid

ROOT = Path(__file__).parent.parent


def test_to_image_inverts_to_tensor_for_every_value():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    x = to_tensor(images)
    assert x.shape == (1, 3, 16, 16) and x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert np.array_equal(to_image(x), images)


def test_to_image_clips_instead_of_wrapping_around():
    assert to_image(torch.tensor([-1.5, 1.5]).view(1, 2, 1, 1)).ravel().tolist() == [0, 255]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_a_grid_shows_the_pixels_as_they_are(channels, mode):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 10, channels), np.uint8)
    grid = make_grid(images)
    assert (grid.mode, grid.size) == (mode, (3 * 12 + 2, 2 * 10 + 2))
    pixels = np.asarray(grid).reshape(*grid.size[::-1], channels)
    assert np.array_equal(pixels[12:20, 14:24], images[4])  # the second row, the second image


# Positions ---------------------------------------------------------------------------------------


# The doctor --------------------------------------------------------------------------------------


def test_copies_and_mirror_images_are_found_even_saved_again():
    random = np.random.default_rng(0)
    smooth = [
        Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).resize((32, 32))
        for _ in range(5)
    ]
    images = np.stack([np.asarray(image) for image in smooth])
    noise = random.integers(-3, 4, images[0].shape)
    again = np.clip(images[1].astype(int) + noise, 0, 255).astype(np.uint8)
    turned = np.clip(images[2, :, ::-1].astype(int) + noise, 0, 255).astype(np.uint8)
    images = np.concatenate([images, [again, turned, images[0]]])
    assert find_alike(images) == [(1, 5), (0, 7)]
    assert find_alike(images, mirror=True) == [(2, 6)]
    assert find_alike(np.zeros((5000, 9, 8, 1), np.uint8))[-1] == (0, 4999)


def test_the_doctor_holds_few_images_at_a_time():
    resource = pytest.importorskip("resource")
    images = np.random.default_rng(0).integers(0, 256, (4000, 8, 8, 1), np.uint8)
    images = images.repeat(16, 1).repeat(16, 2)
    find_alike(images[:250])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert find_alike(images) == []
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 150_000  # in KB; as floats they are 262 MB


def test_the_doctor_reports_and_writes_a_contact_sheet(images, tmp_path):
    (images / "zz.png").write_bytes((images / "0002.png").read_bytes())
    (images / "bad.png").write_bytes(b"")
    Image.new("L", (30, 30), 9).save(images / "grey.png")
    sheet = tmp_path / "sheet.png"
    command = [sys.executable, ROOT / "dataset.py", images, "--output", sheet]
    command += ["--image_size", "16"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for words in ("images: 22", "3 channels", "24x20 (21)", "30x30 (1)", "RGB (21)", "L (1)",
                  "bad.png: not an image", "5 levels: 1\n    zz.png of 0002.png"):  # fmt: skip
        assert words in said
    assert Image.open(sheet).size == (5 * 18 + 2, 5 * 18 + 2)


def test_the_doctor_reports_where_training_would_refuse(tmp_path):
    for i in range(3):
        (tmp_path / f"bad\n{i}.png").write_bytes(b"")
    found = find(str(tmp_path))
    cached = open_cached(found, (8, 8), None, str(tmp_path / "cache"), "bad")
    assert examine(found, cached, tmp_path / "sheet.png").splitlines() == [
        "images: 0",
        "can't be read: 3",
        *(f"    'bad\\n{i}.png': not an image, or a broken one" for i in range(3)),
    ]


def test_random_numbers_differ_between_purposes_and_positions():
    draws = {
        float(utils.random_at(seed, purpose, position).random())
        for seed in (0, 1)
        for purpose in ("order", "mirror")
        for position in (0, 1)
    }
    assert len(draws) == 8
