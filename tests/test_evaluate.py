"""evaluate.py as a user runs it: a checkpoint or a folder in, a line a metric and a sheet out."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_generator, write_images
from PIL import Image

import evaluate as script
from evaluate import Request, evaluate
from metrics import features
from serialization import checkpoint
from utils import SettingsError

ROOT = Path(__file__).parent.parent
NAMES = ["kid", "precision", "recall", "density", "coverage"]


@pytest.fixture
def asked(tmp_path, images):
    """Settings that compare the images of a small checkpoint with a folder of 20."""
    return {
        "load_path": write_generator(tmp_path / "a.pth", 3), "data": str(images), "device": "cpu",
        "feature_network": "discriminator", "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip


class Means(features.FeatureNetwork):
    """Stands for a network whose features last: the mean colours of the image's quarters."""

    name, title = "efficientnet", "means"
    resize = "2x2"

    def __init__(self, *_):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        x = images.permute(0, 3, 1, 2) * self.scale
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.fixture
def extracted(monkeypatch):
    """Put `Means` for every network, and give a list of what features are extracted of."""
    calls = []

    def extract(network, images, rows, what):
        calls.append((what, len(rows)))
        return features_extract(network, images, rows, what)

    features_extract = features.extract
    monkeypatch.setattr(script, "load_network", Means)
    monkeypatch.setattr(script, "extract", extract)
    monkeypatch.setattr(features, "extract", extract)
    return calls


def test_a_user_gets_metrics_and_a_sheet_beside_the_checkpoint(asked, tmp_path):
    words = [word for name, value in asked.items() for word in (f"--{name}", value)]
    done = subprocess.run(
        [sys.executable, ROOT / "evaluate.py", *words, "--num_output", "16", "--neighbours"],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr and len(done.stderr.splitlines()) <= 1
    written = (tmp_path / "a.discriminator.json").read_text()
    lines = json.loads(written)
    assert [line["metric"] for line in lines] == ["frechet", *NAMES, "nearest"]
    assert len(written.splitlines()) == len(lines) + 2
    for line in lines:
        assert np.isfinite([line["value"], line["floor"]]).all()
        assert line["generated"] == 16 and line["seed"] == 0 and line["image_size"] == "12x16"
        assert line["network"] == "the checkpoint's discriminator" and line["resize"] == "none"
    assert lines[0]["real"] == 16 and lines[0]["floor_counts"] == [10, 10]
    assert lines[-1]["real"] == 20 and lines[-1]["floor_counts"] == [20, 19]
    assert "16 generated images of 12x16 against 16 of 20 real" in done.stdout
    for name in ("frechet", *NAMES, "nearest"):
        assert sum(line.startswith(f"{name} ") for line in done.stdout.splitlines()) == 1
    sheet = np.asarray(Image.open(tmp_path / "a.discriminator.png"))
    assert min(sheet.shape[:2]) > 600 and sheet.std() > 10


def test_what_is_measured_follows_from_the_seed(asked):
    first, again = (evaluate(Request(**asked)) for _ in range(2))
    assert first == again
    assert first[0]["generated"] == 20
    other = evaluate(Request(**asked, seed=100))
    assert other[0]["value"] != first[0]["value"] and other[0]["floor"] == first[0]["floor"]


def test_the_features_of_real_images_are_read_again(asked, extracted, tmp_path):
    asked["feature_network"] = "efficientnet"
    first = evaluate(Request(**asked))
    assert extracted == [("real images", 20), ("generated images", 20)]
    assert evaluate(Request(**asked)) == first
    assert extracted[2:] == [("generated images", 20)]
    asked["load_path"] = write_generator(tmp_path / "grey.pth")
    evaluate(Request(**asked))
    write_images(Path(asked["data"]), 1, first=20)
    evaluate(Request(**asked, num_output=6))
    evaluate(Request(**asked, num_output=6, neighbours=True))
    real = [call for call in extracted if call[0] == "real images"]
    assert real == [("real images", count) for count in (20, 20, 12, 9)]
    assert len(list((tmp_path / "cache").glob("images-efficientnet-*.npy"))) == 3


def test_efficientnet_runs_without_a_network(asked):
    pytest.importorskip("efficientnet_lite_pytorch")
    lines = evaluate(Request(**asked | {"feature_network": "efficientnet"}, num_output=12))
    assert lines[0]["metric"] == "frechet" and "128x128" in lines[0]["resize"]
    assert lines[0]["value"] > lines[0]["floor"] > 0  # an untrained generator against noise


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_transparent_images_are_compared_as_the_generator_draws_them(
    asked, tmp_path, channels
):
    asked["load_path"] = write_generator(tmp_path / "b.pth", channels)
    assert evaluate(Request(**asked, neighbours=True))[0]["channels"] == channels


def test_copies_among_anyones_images_are_found_without_a_checkpoint(asked, extracted, tmp_path):
    del asked["load_path"]
    write_images(tmp_path / "theirs", 20)
    request = {"images": str(tmp_path / "theirs"), "image_size": "12x16", "neighbours": True}
    lines = evaluate(Request(**asked | request | {"feature_network": "efficientnet"}))
    values = {line["metric"]: line["value"] for line in lines}
    assert abs(values["frechet"]) < 1e-3
    assert values["precision"] == values["recall"] == values["coverage"] == 1
    assert values["nearest"] == 0 < lines[-1]["floor"]
    assert json.loads((tmp_path / "theirs.efficientnet.json").read_text()) == lines
    assert (tmp_path / "theirs.efficientnet.png").exists()


def test_a_frechet_distance_is_a_fid_only_where_the_network_says_so(asked, extracted, monkeypatch):
    assert evaluate(Request(**asked))[0]["metric"] == "frechet"
    monkeypatch.setattr(Means, "frechet", "fid")
    assert evaluate(Request(**asked))[0]["metric"] == "fid"


@pytest.mark.parametrize(
    "wrong",
    [{"images": "x"}, {"load_path": None}, {"load_path": None, "images": "x"}, {"seed": -1},
     {"num_output": 5}, {"activation": "swish"}, {"inception_weights": "a.pth"}, {"z_dist": "x"},
     {"load_path": None, "images": "x", "activation": "relu"},
     {"feature_network": "vgg"}, {"output": "a.png"}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(asked, wrong):
    with pytest.raises(SettingsError):
        Request(**asked | wrong)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--load_path a.pth", "--data"),
        ("--load_path missing.pth --data images", "missing.pth"),
        ("--load_path notes.pth --data images", "notes.pth"),
        ("--load_path a.pth --data missing", "--data missing"),
        ("--load_path a.pth --data few", "--data: 3 images are too few"),
        ("--load_path a.pth --data images --num_output 21", "--num_output 21: there are 20"),
        ("--load_path a.pth --data images --output notes.pth/a.json", "notes.pth"),
        ("--load_path a.pth --data images --device toaster", "--device toaster"),
        ("--load_path blind.pth --data images", "blind.pth"),
        ("--images missing --data images --feature_network efficientnet", "--images missing"),
    ],
)
def test_a_mistake_is_one_line_with_status_2(asked, tmp_path, monkeypatch, capsys, arguments, says):
    (tmp_path / "notes.pth").write_text("no checkpoint")
    write_images(tmp_path / "few", 3)
    contents = checkpoint.load(asked["load_path"])
    del contents["discriminator"]
    checkpoint.save(tmp_path / "blind.pth", contents)
    monkeypatch.chdir(tmp_path)
    if "feature_network" not in arguments:
        arguments += " --feature_network discriminator"
    elif "efficientnet" in arguments:
        monkeypatch.setattr(features, "load_network", Means)
    before = {path.name for path in tmp_path.iterdir()} | {"cache"}
    monkeypatch.setattr(sys, "argv", [str(ROOT / "evaluate.py"), *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and len(said.splitlines()) == 1 and says in said, said
    assert {path.name for path in tmp_path.iterdir()} <= before
