"""The probe: features, classes that stay with their images, draws of labels, the command."""

import json
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_images, write_mnist
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from metrics import linear_svm
from models import Discriminator, recalibrate
from preprocessing.labelled import open_labelled
from preprocessing.sources import DataError
from probe import Request, describe, draw_labels, probe, standardise, untrained
from serialization import checkpoint

SCRIPT = Path(__file__).parent.parent / "probe.py"
COLOURS = ("blue", "green", "red")  # the classes of the tests' images


def make_network(size=16, features=4, channels=3):
    torch.manual_seed(0)
    return Discriminator(features, channels, size).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a small discriminator, as training writes it."""
    config = {
        "features": 4, "channels": 3, "image_size": "16", "max_features": 1024, "norm": "batch",
    }  # fmt: skip
    path = tmp_path_factory.mktemp("saved") / "a.pth"
    checkpoint.save(path, {"config": config, "discriminator": make_network().state_dict()})
    return str(path)


def write_classes(folder, count, broken=()):
    """Write a folder of `count` images for each of COLOURS, each of a shade of its own within it.

    Files with a number in `broken` are no images.
    """
    for name, colour in zip(COLOURS, ((0, 0, 150), (0, 150, 0), (150, 0, 0)), strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            path = folder / name / f"{i:03d}.png"
            Image.new("RGB", (16, 16), tuple(level + i for level in colour)).save(path)
            if i in broken:
                path.write_bytes(b"no image")
    return folder


def true_labels(data):
    """Return the classes of all images as their pixels tell them."""
    return 2 - data.images[:, 0, 0].argmax(1)


def open_small(data, **folders):
    return open_labelled(str(data), (16, 16), 3, seed=0, **folders)


# Features ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "layers", "dimensions"),
    [(64, [1, 2, 3, 4], (64 + 128 + 256 + 512) * 16), (32, [1, 2, 3], (64 + 128 + 256) * 16),
     (28, [1, 2], (64 + 128) * 16), (64, [2, 4], (128 + 512) * 16)],
)  # fmt: skip
def test_features_have_the_papers_dimensions(size, layers, dimensions):
    network = make_network(size, 64)
    with torch.no_grad():
        x = torch.rand(2, 3, size, size)
        features = describe(network, layers, x)
        first = network.feature_maps(x)[layers[0] - 1]
    assert features.shape == (2, dimensions)
    side = -(-first.shape[2] // 4)
    assert features[1, 0] == first[1, 0, :side, :side].max()


@pytest.mark.parametrize("statistics", ["running", "recalibrated"])
def test_a_images_features_do_not_depend_on_its_batch(statistics):
    network, x = make_network(), torch.rand(20, 3, 16, 16) * 2 - 1
    if statistics == "recalibrated":
        recalibrate(network, x.split(10))
    with torch.no_grad():
        alone, among = describe(network, [1, 2], x[7:8]), describe(network, [1, 2], x)[7:8]
        assert torch.allclose(alone, among, atol=1e-6)
        with_batch_statistics = describe(network.train(), [1, 2], x)[7:8]
    assert not torch.allclose(alone, with_batch_statistics, atol=1e-3)


def test_recalibrated_statistics_are_the_mean_of_the_batches():
    network, x = make_network(), torch.rand(20, 3, 16, 16) * 2 - 1
    norm = next(layer for layer in network.main if isinstance(layer, nn.BatchNorm2d))
    means = []
    norm.register_forward_pre_hook(lambda _, maps: means.append(maps[0].mean((0, 2, 3))))
    recalibrate(network, [x[:5], x[5:] * 0.1])
    assert torch.allclose(norm.running_mean, (means[0] + means[1]) / 2, atol=1e-6)
    assert not network.training


def test_the_untrained_network_has_fresh_weights_of_the_seed():
    network = make_network()
    network.main[3].running_mean += 1
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fresh, same, other = (untrained(network, seed).state_dict() for seed in (5, 5, 6))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]) and torch.equal(fresh[name], same[name])
        if name.endswith("weight"):
            assert not torch.equal(fresh[name], tensor)
            assert not torch.equal(fresh[name], other[name])
    assert fresh["main.3.running_mean"].abs().max() == 0


def test_standardised_features_have_mean_0_and_deviation_1():
    x = torch.rand(50, 3) * torch.tensor([1.0, 1e-3, 0]) + 5
    other = x.clone()
    other[:, 2] = 7  # constant in x: no reason to make much of it
    standardise(x, other)
    assert torch.allclose(x.mean(0), torch.zeros(3), atol=1e-3)
    assert torch.allclose(x.std(0), torch.tensor([1.0, 1, 0]), atol=1e-3)
    assert torch.equal(x[:, :2], other[:, :2]) and other[:, 2].abs().max() == 0


# Classes -----------------------------------------------------------------------------------------


def test_a_folder_of_classes_is_divided_by_the_seed(tmp_path, capsys):
    folder = write_classes(tmp_path / "colours", 25, broken=(0, 7, 24))
    data = open_small(folder)
    assert "9 of 75 images can't be read" in capsys.readouterr().err
    assert data.classes == list(COLOURS) and len(data.images) == 66
    assert np.array_equal(data.labels, true_labels(data))
    rows = np.concatenate([data.learning, data.validation, data.test])
    assert sorted(rows) == list(range(66))
    for part in (data.learning, data.validation, data.test):
        counts = np.bincount(data.labels[part])
        assert counts.max() - counts.min() <= 2
    again = open_small(folder)
    assert np.array_equal(data.test, again.test) and np.array_equal(data.learning, again.learning)
    other = open_labelled(str(folder), (16, 16), 3, seed=1)
    assert set(other.test) != set(data.test)


@pytest.mark.parametrize("archive", [False, True])
def test_the_folders_train_and_test_are_kept_to(tmp_path, capsys, archive):
    for part, count in (("train", 10), ("test", 4), ("unlabelled", 3)):
        write_classes(tmp_path / "set" / "colours" / part, count, broken=(2,))
    data = tmp_path / "set"
    if archive:
        data = tmp_path / "set.zip"
        with zipfile.ZipFile(data, "w") as opened:
            for path in sorted((tmp_path / "set").rglob("*.png"), reverse=True):
                opened.write(path, path.relative_to(tmp_path))
    data = open_small(data)
    assert "6 images lie neither in train nor in test" in capsys.readouterr().err
    assert (len(data.learning) + len(data.validation), len(data.test)) == (27, 9)
    rows = np.concatenate([data.learning, data.validation, data.test])
    assert np.array_equal(data.labels[rows], true_labels(data)[rows])
    assert set(data.images[data.test].min((1, 2, 3))) == {0, 1, 3}


def test_digits_have_scikit_learns_labels():
    data = open_labelled("digits", (8, 8), 1, seed=0)
    digits = load_digits()
    assert np.array_equal(data.images[..., 0], (digits.images * (255 / 16)).round())
    assert [data.classes[label] for label in data.labels] == [str(i) for i in digits.target]


def test_mnist_has_its_labels_and_its_own_test_part(tmp_path):
    pixels = write_mnist(tmp_path, 30)
    labels = {"train": np.arange(30) % 3, "t10k": np.arange(30) % 2}
    for part, values in labels.items():
        header = np.array([0x801, 30], ">i4").tobytes()
        path = tmp_path / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte"
        path.write_bytes(header + values.astype(np.uint8).tobytes())
    data = open_labelled("mnist", (28, 28), 1, seed=0, download_dir=str(tmp_path))
    assert np.array_equal(data.images[..., 0], np.concatenate([pixels, pixels]))
    assert data.labels.tolist() == [*labels["train"], *labels["t10k"]]
    assert sorted(data.test) == list(range(30, 60))


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_coloured_sets_have_their_labels(name, monkeypatch):
    """Stand-ins for torchvision's classes, which take no data but those that they know."""
    random = np.random.default_rng(0)
    pixels = {part: random.integers(0, 256, (20, 32, 32, 3), np.uint8) for part in (True, False)}

    class Stored:
        def __init__(self, root, part="train", download=False):
            if root == "empty":
                raise RuntimeError("no network\nat all")
            part = part in (True, "train")
            self.data = pixels[part].transpose(0, 3, 1, 2) if name == "svhn" else pixels[part]
            self.labels = self.targets = [int(not part)] * 10 + [2] * 10 if part else [0, 2] * 10

    monkeypatch.setattr(f"torchvision.datasets.{name.upper()}", Stored)
    data = open_labelled(name, (32, 32), 3, seed=0)
    assert np.array_equal(data.images, np.concatenate([pixels[True], pixels[False]]))
    assert data.classes == ["0", "2"]
    assert data.labels.tolist() == [0] * 10 + [1] * 10 + [0, 1] * 10
    with pytest.raises(DataError, match=rf"{name}: .* --download_dir empty, .* no network\)"):
        open_labelled(name, (32, 32), 3, seed=0, download_dir="empty")


def test_what_has_no_classes_is_refused(tmp_path, images):
    with pytest.raises(DataError, match=r"0000\.png lies in no folder"):
        open_small(images)
    with pytest.raises(DataError, match="all images are in images; two classes"):
        open_small(images.parent)
    with pytest.raises(DataError, match="no classes"):
        open_small("celeba")
    write_classes(tmp_path / "set" / "train", 5)
    write_images(tmp_path / "set" / "test" / "new", 2)
    with pytest.raises(DataError, match="no image of new to learn from"):
        open_small(tmp_path / "set")
    broken = write_classes(tmp_path / "broken", 5, broken=(0, 1, 2))
    with pytest.raises(DataError, match="9 of 15 images can't be read"):
        open_small(broken)


# Probing -----------------------------------------------------------------------------------------


def test_draws_are_balanced_and_seeded(tmp_path):
    data = open_small(write_classes(tmp_path / "colours", 20))

    def draw(**request):
        request = {"load_path": "a.pth", "data": "colours", "labels_per_class": 6} | request
        return draw_labels(Request(**request), data)

    draws = draw(draws=5)
    for rows in draws:
        assert len(set(rows)) == 18
        assert np.bincount(data.labels[data.learning][rows]).tolist() == [6, 6, 6]
    assert len({tuple(rows) for rows in draws}) == 5
    assert np.array_equal(draws, draw(draws=7)[:5])
    assert not np.array_equal(draws, draw(draws=5, seed=1))
    assert len(draw()) == 100 and draw(labels_per_class=None) == []


def test_probe_learns_from_draws_of_labels(saved, tmp_path):
    folder = write_classes(tmp_path / "colours", 20)
    lines = probe(
        Request(
            load_path=saved, data=str(folder), labels_per_class=3, draws=2, layers="2",
            statistics="running", no_baselines=True, device="cpu",
            output=str(tmp_path / "new" / "a.json"),
        )
    )  # fmt: skip
    assert [line["features"] for line in lines] == ["discriminator"]
    assert lines == json.loads((tmp_path / "new" / "a.json").read_text())
    assert lines[0]["dimensions"] == 8 * 16 and lines[0]["layers"] == [2]
    assert lines[0]["labels"] == 9 and lines[0]["draws"] == 2 and lines[0]["deviation"] >= 0
    assert 0.5 < lines[0]["accuracy"] <= 1


def test_the_command_compares_with_pixels_and_the_untrained_network(saved, tmp_path):
    folder = write_classes(tmp_path / "colours", 30)
    arguments = ["--load_path", saved, "--data", folder, "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "72 labels; 15 choose C\ntesting on 18 images of 3 classes; chance 33.3%" in done.stdout
    assert "82.8%" in done.stdout and "discriminator" in done.stdout
    lines = json.loads(Path(saved).with_suffix(".probe.json").read_text())
    assert [line["features"] for line in lines] == ["discriminator", "untrained", "raw pixels"]
    assert [line["dimensions"] for line in lines] == [12 * 16, 12 * 16, 768]
    for line in lines:
        assert line["accuracy"] > 0.9 and line["C"] in linear_svm.GRID
        assert line["statistics"] == "recalibrated" and line["seed"] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--data colours", "--load_path"),
        ("--load_path a.pth", "--data"),
        ("--load_path missing.pth --data colours", "missing.pth"),
        ("--load_path . --data colours", ". is a folder"),
        ("--load_path generator.pth --data colours", "holds no discriminator"),
        ("--load_path a.pth --data missing", "--data missing"),
        ("--load_path a.pth --data colours/red", "--data colours/red"),
        ("--load_path a.pth --data celeba", "--data celeba"),
        ("--load_path a.pth --data colours --layers 1,3", "--layers 1,3: must be some of 1,2"),
        ("--load_path a.pth --data colours --layers one", "--layers one"),
        ("--load_path a.pth --data colours --draws 5", "--draws 5"),
        ("--load_path a.pth --data colours --labels_per_class 9", "--labels_per_class 9"),
        ("--load_path a.pth --data colours --labels_per_class 0", "--labels_per_class 0"),
        ("--load_path a.pth --data colours --statistics batch", "--statistics"),
        ("--load_path a.pth --data colours --output a.txt", "--output a.txt"),
        ("--load_path a.pth --data colours --output a.pth/b.json", "a.pth"),
    ],
)
def test_a_mistake_is_one_line_with_status_2(saved, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "colours", 10)
    Path("a.pth").write_bytes(Path(saved).read_bytes())
    checkpoint.save("generator.pth", {"config": {}, "generator": {}})
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    said = capsys.readouterr()
    assert stopped.value.code == 2 and not said.out
    assert len(said.err.splitlines()) == 1 and says in said.err, said.err
    assert not list(tmp_path.rglob("*.json")) or list(tmp_path.glob("cache/*/about.json"))
