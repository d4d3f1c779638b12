"""Feature networks, and distances that have a closed form, a definition or a known direction."""

import hashlib
import sys
import types
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

import metrics
from metrics import (
    DiscriminatorFeatures,
    Drawn,
    as_seen,
    compare,
    extract,
    extract_cached,
    frechet_distance,
    frechet_from,
    kernel_distance,
    load_network,
    manifold_scores,
    nearest,
)
from models import Discriminator, Generator
from pictures import to_channels
from utils import SettingsError


def normal(count, size=8, seed=0, scale=1.0, shift=0.0):
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.normal(shift, scale, (count, size)).astype(np.float32))


def noise(count, channels=3, side=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), np.uint8)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return DiscriminatorFeatures(Discriminator(4, 3, 16))


# Distances ---------------------------------------------------------------------------------------


def test_a_set_is_no_distance_from_itself():
    values = compare(normal(400), normal(400))
    assert abs(values["frechet"]) < 1e-6
    assert values["precision"] == values["recall"] == values["coverage"] == 1
    assert values["density"] == pytest.approx(1, abs=0.2)
    assert abs(values["kid"]) < 0.05


def test_frechet_of_two_normal_distributions_is_the_closed_form():
    """With axes of their own: |shift|^2 + the sum of (scale - 1)^2 over the dimensions."""
    real, fake = normal(40_000, seed=1), normal(40_000, seed=2, scale=1.5, shift=0.5)
    assert frechet_distance(real, fake) == pytest.approx(8 * (0.5**2 + 0.5**2), rel=0.03)


@pytest.mark.parametrize("count", [300, 20])
def test_frechet_is_what_a_direct_computation_gives(count):
    """Also with fewer pictures than features, where the covariances have no inverse."""
    real, fake = normal(300, 40, 1).double(), normal(count, 40, 2, 2.0, 1.0).double()
    eigenvalues, axes = torch.linalg.eigh(real.T.cov())
    root = axes * eigenvalues.clamp(0).sqrt() @ axes.T
    middle = torch.linalg.eigvalsh(root @ fake.T.cov() @ root).clamp(0).sqrt().sum()
    traces = real.T.cov().trace() + fake.T.cov().trace()
    direct = (real.mean(0) - fake.mean(0)).square().sum() + traces - 2 * middle
    assert frechet_distance(real, fake) == pytest.approx(direct.item(), rel=1e-6)


def test_kid_is_the_unbiased_estimate_of_the_polynomial_kernel():
    real, fake = normal(200, seed=1), normal(200, seed=2, shift=1.0)

    def kernel(a, b):
        return (a.double() @ b.double().T / 8 + 1) ** 3

    own = sum(k.sum() - k.trace() for k in (kernel(real, real), kernel(fake, fake)))
    direct = own / (200 * 199) - 2 * kernel(real, fake).mean()
    assert kernel_distance(real, fake) == pytest.approx(direct.item(), rel=1e-4)


def test_kid_of_one_distribution_is_zero_on_average():
    draws = [kernel_distance(normal(100, seed=i), normal(100, seed=500 + i)) for i in range(40)]
    assert min(draws) < 0 < max(draws)
    assert abs(np.mean(draws)) < 3 * np.std(draws) / 40**0.5


def test_kid_of_many_follows_from_the_seed_and_leaves_the_random_numbers_alone(monkeypatch):
    monkeypatch.setattr(metrics, "KID_SUBSET", 50)
    real, fake = normal(200, seed=1), normal(200, seed=2, shift=0.3)
    before = torch.get_rng_state()
    first = kernel_distance(real, fake, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert kernel_distance(real, fake, seed=3) == first != kernel_distance(real, fake, seed=4)


def test_precision_recall_density_and_coverage_are_their_definitions():
    real, fake = normal(60, 3, 1), normal(45, 3, 2, 1.4, 0.3)
    own_real, own_fake, across = (
        (a[:, None] - b).norm(dim=2).numpy() for a, b in ((real, real), (fake, fake), (real, fake))
    )

    def reach(own, k):
        return np.sort(own, axis=1)[:, k]

    assert manifold_scores(real, fake) == pytest.approx({
        "precision": (across <= reach(own_real, 3)[:, None]).any(0).mean(),
        "recall": (across <= reach(own_fake, 3)).any(1).mean(),
        "density": (across < reach(own_real, 5)[:, None]).sum(0).mean() / 5,
        "coverage": (across < reach(own_real, 5)[:, None]).any(1).mean(),
    })  # fmt: skip


def test_precision_falls_when_fakes_are_broad_and_recall_when_they_are_narrow():
    real = normal(500, seed=1)
    same, broad, narrow = (
        manifold_scores(real, normal(500, seed=2, scale=scale)) for scale in (1, 3, 0.3)
    )
    assert broad["precision"] < 0.3 * same["precision"]
    assert broad["recall"] > 0.9 * same["recall"]
    assert narrow["recall"] < 0.3 * same["recall"]
    assert narrow["precision"] > same["precision"]


def test_a_collapse_to_one_mode_of_two_halves_recall_and_coverage():
    shift = torch.zeros(8)
    shift[0] = 20
    real = torch.cat([normal(250, seed=1), normal(250, seed=2) + shift])
    both = torch.cat([normal(250, seed=3), normal(250, seed=4) + shift])
    before, after = manifold_scores(real, both), manifold_scores(real, normal(500, seed=3))
    assert after["precision"] > 0.9 * before["precision"]
    assert after["recall"] < 0.6 * before["recall"]
    assert after["coverage"] < 0.6 * before["coverage"]
    point = manifold_scores(real, real[:1] + normal(500, seed=5, scale=1e-3))
    assert point["precision"] == 1 and max(point["recall"], point["coverage"]) < 0.05


def test_the_nearest_are_found_with_their_distances_and_a_copy_is_at_zero():
    features, others = 100 + normal(30, seed=1), 100 + normal(90, seed=2)
    others[77] = features[5]
    distances, rows = nearest(features, others, 4)
    direct, order = (features[:, None] - others).norm(dim=2).sort()
    assert torch.equal(rows, order[:, :4]) and torch.equal(distances, direct[:, :4])
    assert distances[5, 0] == 0 and rows[5, 0] == 77


def test_chunks_change_nothing(monkeypatch):
    real, fake = normal(100, seed=1), normal(80, seed=2)
    whole = manifold_scores(real, fake), nearest(real, fake, 3)
    monkeypatch.setattr(metrics, "CHUNK", 7)
    assert manifold_scores(real, fake) == whole[0]
    assert all(map(torch.equal, nearest(real, fake, 3), whole[1]))


# Features ----------------------------------------------------------------------------------------


def test_features_of_a_picture_depend_on_it_alone(network):
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


def test_efficientnet_takes_grey_and_transparent_pictures_as_people_see_them():
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
def test_pictures_become_rgb_as_pillow_shows_them(channels):
    images = noise(4, channels)
    for image, seen in zip(images, as_seen(torch.from_numpy(images)).numpy(), strict=True):
        expected = np.asarray(to_channels(Image.fromarray(image.squeeze()), 3)).astype(int)
        assert seen.shape == (16, 16, 3) and abs(seen - expected).max() <= 1


def test_cached_features_are_read_again_and_added_to(network, tmp_path, monkeypatch):
    images, path = noise(40), tmp_path / "features.npy"
    order = np.random.default_rng(0).permutation(40)
    expected = extract(network, images, order)
    assert torch.equal(extract_cached(network, images, order[:10], path, ""), expected[:10])
    assert torch.equal(extract_cached(network, images, order, path, ""), expected)
    monkeypatch.delattr(metrics, "extract")
    assert torch.equal(extract_cached(network, images, order[:25], path, ""), expected[:25])
    assert [file.name for file in tmp_path.iterdir()] == ["features.npy"]


def test_a_generator_in_training_is_measured_and_left_as_it_was(network):
    torch.manual_seed(0)
    generator = Generator(8, 4, 3, 16).train()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    real = extract(network, noise(30), np.arange(30))
    value = frechet_from(network, generator, real, 20)
    assert value == frechet_distance(real, extract(network, Drawn(generator), np.arange(20))) > 0
    assert generator.training
    assert all(torch.equal(before[name], new) for name, new in generator.state_dict().items())


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
    monkeypatch.setattr(metrics, "INCEPTION_SHA256", digest)
    network = load_network("inception", None, str(weights))
    assert network.frechet == "fid"
    assert network(torch.from_numpy(noise(2, 1))).shape == (2, 3)
