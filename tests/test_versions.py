"""Checkpoints and settings files that earlier versions wrote; each release adds a folder.

A folder of tests/fixtures is named after the commit that wrote it. `at_step_26.pth` is the
checkpoint of a run, and `at_step_32.pth` what the same commit gave when it went on to step 32.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import to_image
from models import Generator, generate, sample_latents
from serialization import checkpoint
from train import Config, train
from utils import parse_named_settings

VERSIONS = sorted((Path(__file__).parent / "fixtures").iterdir())
STATES = ("generator", "discriminator", "optimizer_g", "optimizer_d", "generator_ema")


def assert_close(a, b):
    """Equal, but for what another processor rounds otherwise."""
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_close(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_a_run_of_an_earlier_version_goes_on_as_it_would_have(version):
    own = Path("checkpoints", "tiny", "last.pth")
    own.parent.mkdir(parents=True)
    shutil.copy(version / "at_step_26.pth", own)
    words = [f"@{version / 'settings.txt'}", "--resume", "--steps", "32"]
    last = checkpoint.load(train(*parse_named_settings(Config, None, words)))
    expected = checkpoint.load(version / "at_step_32.pth")
    assert last["step"] == expected["step"] == 32
    for state in STATES:
        assert_close(last[state], expected[state])


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_networks_of_an_earlier_version_open(version):
    generator = Generator.from_checkpoint(version / "at_step_26.pth")
    assert generator.image_size == (16, 16) and generator.z_dim == 8
    foreign = Generator.from_checkpoint(version / "foreign.pth")
    images = to_image(generate(foreign, sample_latents(range(4), foreign.z_dim)))
    expected = np.asarray(Image.open(version / "foreign.png"))
    assert abs(np.concatenate(list(images), 1).squeeze().astype(int) - expected).max() <= 1
