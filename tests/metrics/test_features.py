"""Feature networks: features of an image by itself, whatever its channels, and read again."""

import hashlib
import sys
import types
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from metrics import features
from metrics.features import (
    DiscriminatorFeatures,
    as_seen,
    extract,
    extract_cached,
    load_network,
)
from models import Discriminator
from preprocessing.decode import to_channels
from utils import SettingsError


def noise(count, channels=3, side=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), np.uint8)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return DiscriminatorFeatures(Discriminator(4, 3, 16))


def test_features_of_a_image_depend_on_it_alone(network):
    images = noise(70)
    together = extract(network, images, np.arange(70))
    assert together.shape == (70, 4 + 8) and together.dtype == torch.float32
    assert torch.equal(extract(network, images, np.array([69, 3])), together[[69, 3]])


def test_the_discriminators_features_are_the_means_of_its_maps(network):
    network.discriminator.main[3].running_mean += 0.5  # which an untrained one has at 0
    images = noise(3)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    maps = network.discriminator.feature_maps(x)
    expected = torch.cat([m.mean((2, 3)) for m in maps], 1)
    assert torch.allclose(extract(network, images, np.arange(3)), expected, atol=1e-6)


def test_efficientnet_takes_grey_and_transparent_images_as_people_see_them():
    pytest.importorskip("efficientnet_lite_pytorch")
    network = load_network("efficientnet")
    grey = noise(2, 1)
    colour = np.repeat(grey, 3, axis=3)
    opaque = np.concatenate([colour, np.full_like(grey, 255)], 3)
    features = [extract(network, images, np.arange(2)) for images in (grey, colour, opaque)]
    assert features[0].shape == (2, 1280) and features[0].std() > 0.1
    assert torch.equal(features[0], features[1]) and torch.equal(features[1], features[2])
    assert torch.equal(extract(network, grey, np.array([1])), features[0][1:])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_become_rgb_as_pillow_shows_them(channels):
    images = noise(4, channels)
    for image, seen in zip(images, as_seen(torch.from_numpy(images)).numpy(), strict=True):
        expected = np.asarray(to_channels(Image.fromarray(image.squeeze()), 3)).astype(int)
        assert seen.shape == (16, 16, 3) and abs(seen - expected).max() <= 1


def test_cached_features_are_read_again_and_added_to(network, tmp_path, monkeypatch):
    images, path = noise(40), tmp_path / "features.npy"
    order = np.random.default_rng(0).permutation(40)
    expected = extract(network, images, order)
    assert torch.equal(extract_cached(network, images, order[:10], path, ""), expected[:10])
    for length in (-1, 100, 0):  # cut within the numbers, within the header, empty
        path.write_bytes(path.read_bytes()[:length])
        assert torch.equal(extract_cached(network, images, order, path, ""), expected)
    monkeypatch.delattr(features, "extract")
    assert torch.equal(extract_cached(network, images, order[:25], path, ""), expected[:25])
    assert [file.name for file in tmp_path.iterdir()] == ["features.npy"]


# Networks that others made -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "package"),
    [("inception", "torch_fidelity"), ("efficientnet", "efficientnet_lite_pytorch")],
)
def test_what_is_not_installed_is_named(name, package, monkeypatch):
    for module in [package, *(m for m in sys.modules if m.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingsError, match=f"--feature_network {name}.*pip install {package[:5]}"):
        load_network(name)


@pytest.fixture
def fidelity(monkeypatch):
    """Stands for torch-fidelity: its extractor takes the mean colour, and downloads nothing."""

    class Extractor(torch.nn.Module):
        def __init__(self, name, features, weights):
            super().__init__()
            if weights is None:
                raise URLError("no network")

        def forward(self, x):
            assert x.dtype == torch.uint8 and x.shape[1] == 3
            return (x.float().mean((2, 3)),)

    name = "torch_fidelity.feature_extractor_inceptionv3"
    module = types.SimpleNamespace(FeatureExtractorInceptionV3=Extractor)
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, name, module)


def test_a_distance_is_a_fid_on_the_original_weights_alone(fidelity, tmp_path, monkeypatch):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"not the original")
    with pytest.raises(SettingsError, match=r"--inception_weights .*weights\.pth: is not"):
        load_network("inception", None, str(weights))
    with pytest.raises(FileNotFoundError):
        load_network("inception", None, str(tmp_path / "missing.pth"))
    with pytest.raises(SettingsError, match=r"no network.*give the file by --inception_weights"):
        load_network("inception")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setattr(features, "INCEPTION_SHA256", digest)
    network = load_network("inception", None, str(weights))
    assert network.frechet == "fid"
    assert network(torch.from_numpy(noise(2, 1))).shape == (2, 3)
