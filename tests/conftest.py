"""Small images and small runs that several files of tests share."""

import os
import runpy
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import Discriminator, Generator
from serialization import checkpoint

# Neither this process nor those that the tests start may reach another machine.
OFFLINE = Path(__file__).parent / "offline"
runpy.run_path(str(OFFLINE / "sitecustomize.py"))
os.environ["OMP_NUM_THREADS"] = "1"  # of torch, in each of pytest's processes; threads would wait
os.environ["PYTHONPATH"] = f"{OFFLINE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"


# Nor do they inherit that signals are ignored, as under nohup.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def write_images(folder, count, size=(20, 24), mode="RGB", suffix=".png", first=0):
    """Write `count` random images of `size` (width, height) into `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(first)
    depth = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
    for i in range(first, first + count):
        pixels = random.integers(0, 256, (size[1], size[0], *depth), np.uint8)
        Image.fromarray(pixels, mode).save(folder / f"{i:04d}{suffix}")
    return folder


def write_mnist(folder, count):
    """Write `count` random digits as torchvision lays MNIST out in `folder`, and return them."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
    for part in ("train", "t10k"):
        header = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        classes = bytes(i % 2 for i in range(count))
        labels = np.array([0x801, count], ">i4").tobytes() + classes
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return pixels


def write_generator(path, channels=1, z_dist="normal"):
    """Write a checkpoint of 12x16 networks with varied weights, as training does; return `path`."""
    torch.manual_seed(0)
    networks = {}
    for kind, first in ((Generator, (8,)), (Discriminator, ())):
        network = kind(*first, 16, channels, (12, 16))
        network.apply(
            lambda m: torch.nn.init.normal_(m.weight, 0, 0.2) if hasattr(m, "weight") else m
        )
        networks[kind.__name__.lower()] = network.state_dict()
    config = {
        "z_dim": 8, "features": 16, "channels": channels, "image_size": "12x16",
        "max_features": 1024, "norm": "batch", "activation": "relu", "z_dist": z_dist,
    }  # fmt: skip
    checkpoint.save(path, {"config": config, **networks})
    return str(path)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """What a test writes without saying where goes to a folder of its own."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


@pytest.fixture
def images(tmp_path):
    """A folder of 20 colour images."""
    return write_images(tmp_path / "images", 20)


def small_run(folder):
    """Return settings of a run that takes a second, on the 20 images in `folder`/images.

    It has 5 steps an epoch, and writes nothing outside `folder`.
    """
    return {
        "data": str(folder / "images"), "image_size": 16, "features": 4, "z_dim": 8,
        "batch_size": 4, "epochs": 2, "checkpoint_dir": str(folder / "checkpoints"),
        "sample_dir": str(folder / "samples"), "log_every": 1, "device": "cpu",
        "cache_dir": str(folder / "cache"), "precision": "fp32",
    }  # fmt: skip


@pytest.fixture
def small(tmp_path, images):
    """Settings of a run that takes a second, see `small_run`."""
    return small_run(tmp_path)
