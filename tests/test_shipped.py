"""The networks and images that come with the repository, and what their card says of them."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from generate import Request, generate_images
from models import Discriminator, Generator, generate, sample_latents
from serialization import checkpoint
from serialization.checkpoint import SHIPPED

ROOT = Path(__file__).parent.parent
CARD = (ROOT / "checkpoints" / "README.md").read_text(encoding="utf-8")
MEGABYTES = {"cats64": 8, "mnist": 1}


@pytest.mark.parametrize("name", MEGABYTES)
def test_networks_are_small_hold_no_optimizer_and_name_no_machine(name):
    path = SHIPPED.with_name(f"{name}.pth")
    for file, network in ((path, "generator"), (checkpoint.beside(path), "discriminator")):
        assert file.stat().st_size <= MEGABYTES[name] * 1_000_000
        contents = checkpoint.load(file)
        assert network in contents and not {"optimizer_g", "optimizer_d"} & contents.keys()
        assert "/" not in contents["config"]["data"]


@pytest.mark.parametrize("name", MEGABYTES)
def test_the_discriminator_takes_most_of_the_generators_images_for_what_they_are(name):
    path = SHIPPED.with_name(f"{name}.pth")
    generator, discriminator = (n.from_checkpoint(path) for n in (Generator, Discriminator))
    images = generate(generator, sample_latents(range(64), generator.z_dim))
    with torch.no_grad():
        assert images.std() > 0.3 and discriminator(images).median() < -0.5


def test_without_arguments_the_image_of_the_readme_is_generated(capsys):
    drawn = np.asarray(Image.open(generate_images(Request(device="cpu"))), int)
    shown = np.asarray(Image.open(ROOT / "samples" / "cats64.png"), int)
    assert abs(drawn - shown).max() <= 2  # as processors round differently
    assert "cats64.pth, which is included" in capsys.readouterr().out


def test_the_sum_of_the_readme_says_how_it_is_drawn_and_on_no_machine():
    about = Image.open(ROOT / "samples" / "cats64-arithmetic.png").text["command"]
    assert "explore.py arithmetic" in about and "load_path" not in about
    assert "explore.py arithmetic" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_card_gives_the_distance_that_chose_the_network():
    best = checkpoint.load(SHIPPED)["best"]
    assert f"{best['value']:.1f}" in CARD and f"{best['floor']:.1f}" in CARD


def test_a_clone_takes_little():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "samples"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("this copy is no clone")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert files and sum(file.stat().st_size for file in files) <= 10_000_000
