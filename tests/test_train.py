"""Runs: written, resumed bit for bit, and never overwritten."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import write_images
from PIL import Image

from dataset import DataError
from models import Generator, sample_latents
from serialization import checkpoint
from serialization.checkpoint import CheckpointError
from train import Config, train
from training import monitor
from utils import SettingsError

STATES = ("generator", "discriminator", "optimizer_g", "optimizer_d", "generator_ema")


def same(a, b):
    """Whether two nests of dictionaries, lists, tensors and values are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_run_leaves_what_the_readme_says(small, tmp_path):
    last = train(Config(**small, save_every=1, keep=1, sample_every=2, learning_rate_g=0.05))
    assert last == tmp_path / "checkpoints" / "images" / "last.pth"
    names = {path.name for path in last.parent.iterdir()}
    assert names == {"last.pth", "epoch_0002.pth", "settings.txt"}

    contents = torch.load(last, weights_only=True)
    assert contents.keys() == {"format", "config", "epoch", "step", "pictures", *STATES}
    assert (contents["epoch"], contents["step"]) == (2, 10)
    assert contents["config"]["image_size"] == "16" and contents["config"]["channels"] == 3

    samples = tmp_path / "samples" / "images"
    grids = [f"step_{step:07d}.png" for step in (2, 4, 5, 6, 8, 10)]
    others = ["real.png", "losses.png", "training.webp", "log.jsonl"]
    assert {path.name for path in samples.iterdir()} == {*grids, *others}
    with Image.open(samples / "training.webp") as animation:
        assert animation.n_frames == len(grids) and animation.info["loop"] == 0

    log = [json.loads(line) for line in (samples / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == list(range(1, 11))
    keys = {"step", "epoch", "loss_d", "loss_g", "d_real", "d_fake", "images_per_second"}
    keys |= {"game", "game_since"}
    assert log[0].keys() == keys and log[-1].keys() == keys | {"variety"}
    assert log[-1]["epoch"] == 2


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_tensorboard_gets_what_the_log_has(small, tmp_path, mode):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    small["data"] = str(write_images(tmp_path / mode, 8, mode=mode))
    train(Config(**small, tensorboard=True, name="logged"))
    events = accumulator.EventAccumulator(str(Path(small["sample_dir"], "logged")))
    events.Reload()
    log = Path(small["sample_dir"], "logged", "log.jsonl").read_text().splitlines()
    expected = [(entry["step"], pytest.approx(entry["loss_g"])) for entry in map(json.loads, log)]
    assert [(scalar.step, scalar.value) for scalar in events.Scalars("loss_g")] == expected
    assert [image.step for image in events.Images("step")] == [2, 4]


CHOICES = [
    {},
    {"mirror": True, "fresh_latents": True, "z_dist": "uniform"},
    {"loss": "hinge", "norm": "none", "activation": "leaky_relu", "image_size": "12x16"},
    {"r1": 1.0, "r1_every": 3, "precision": "fp16", "augment": True},
]


@pytest.mark.parametrize("choices", CHOICES)
@pytest.mark.parametrize("stop", [pytest.param(5, marks=pytest.mark.slow), 7])  # 5: an epoch's end
def test_a_resumed_run_equals_an_unbroken_one(small, choices, stop):
    small |= choices
    unbroken = checkpoint.load(train(Config(**small, name="unbroken")))
    train(Config(**small, name="broken", steps=stop))
    resumed = train(Config(**small, name="broken", resume="last", steps=10))
    resumed = checkpoint.load(resumed)
    assert resumed["step"] == unbroken["step"] == 10 and resumed["epoch"] == unbroken["epoch"] == 2
    assert resumed.keys() == unbroken.keys()
    for state in resumed.keys() - {"config"}:
        assert same(resumed[state], unbroken[state]), state
    logs = [Path(small["sample_dir"], name, "log.jsonl") for name in ("unbroken", "broken")]
    logs = [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]
    for entry in logs[0] + logs[1]:
        del entry["images_per_second"]
    assert logs[0] == logs[1]


def test_the_seed_decides(small):
    first, again, other = (
        checkpoint.load(train(Config(**small, steps=2, name=name, seed=seed)))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert same(first["generator"], again["generator"])
    assert not same(first["generator"], other["generator"])


def test_drawing_a_grid_in_between_changes_nothing(small):
    often = checkpoint.load(train(Config(**small, name="often", sample_every=1)))
    never = checkpoint.load(train(Config(**small, name="never", sample_every=1000)))
    assert all(same(often[state], never[state]) for state in STATES)


def test_the_average_draws_with_the_statistics_of_its_own_images(small):
    last = train(Config(**small, ema=0.9, learning_rate=0.01))
    generator = Generator.from_checkpoint(last)
    maps = generator.main[:4](sample_latents(range(2000), 8).view(-1, 8, 1, 1))  # up to a norm
    norm = generator.main[4]
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert torch.allclose(norm.running_mean, maps.mean((0, 2, 3)), atol=0.2 * maps.std().item())
    assert torch.allclose(norm.running_var, maps.var((0, 2, 3)), rtol=0.4)
    follows = checkpoint.load(last)["generator"]["main.4.running_var"]
    assert not torch.allclose(norm.running_var, follows, rtol=0.01)


def test_a_run_is_never_overwritten(small):
    last = train(Config(**small, steps=1))
    kept = last.read_bytes()
    with pytest.raises(CheckpointError, match="--resume"):
        train(Config(**small, steps=1))
    assert last.read_bytes() == kept


def test_what_an_earlier_run_left_is_set_aside_and_not_lost(small, tmp_path, capsys):
    last = train(Config(**small, save_every=1))
    samples = tmp_path / "samples" / "images"
    kept = {path.name: path.read_bytes() for path in samples.iterdir()}
    train(Config(**{**small, "checkpoint_dir": str(tmp_path / "other")}, steps=1))
    aside = {path.name: path.read_bytes() for path in (tmp_path / "samples/images.1").iterdir()}
    assert aside == kept and "images.1" in capsys.readouterr().out
    last.unlink()
    train(Config(**small, steps=1))
    names = {path.name for path in (tmp_path / "checkpoints" / "images.1").iterdir()}
    assert {"epoch_0001.pth", "epoch_0002.pth"} <= names


@pytest.mark.parametrize("name", ["猫" * 80, f"{'c' * 49}." * 2 + "s"])
def test_a_run_is_named_after_a_folder_with_a_long_name(small, name):
    """Which has 240 bytes, or a dot where the name is cut."""
    data = Path(small["data"]).rename(Path(small["data"]).with_name(name))
    last = train(Config(**small | {"data": str(data)}, steps=1))
    assert name[:49] in last.parent.name and last.exists()


def test_replace_goes_on_with_the_same_settings(small):
    config = Config(**small, steps=4)
    train(config)
    longer = train(replace(config, resume="last", steps=8))
    assert checkpoint.load(longer)["step"] == 8
    assert checkpoint.load(train(replace(config, resume="last", steps=None)))["step"] == 10


def test_few_steps_are_warned_of(small, capsys):
    train(Config(**small, name="few"))
    assert "10 steps are few" in capsys.readouterr().err
    train(Config(**small, name="chosen", steps=10))
    assert "few" not in capsys.readouterr().err


def test_small_sets_are_advised_on(small, capsys):
    train(Config(**small, steps=1, name="plain"))
    assert "20 images are a small set: --augment may" in capsys.readouterr().out
    train(Config(**small | {"data": "digits"}, steps=1, name="digits"))
    train(Config(**small, steps=1, name="augmented", augment=True))
    assert "small set" not in capsys.readouterr().out


def test_resume_with_nothing_saved_starts_anew_and_says_so(small, capsys):
    assert checkpoint.load(train(Config(**small, steps=1, resume="last")))["step"] == 1
    assert "starting a new run" in capsys.readouterr().out


def test_resume_takes_what_is_not_given_from_the_checkpoint(small):
    first = train(Config(**small, steps=3, loss="lsgan"))
    settings = {key: small[key] for key in ("checkpoint_dir", "sample_dir")}
    again = checkpoint.load(train(Config(**settings, name="images", resume="last", epochs=1)))
    assert again["step"] == 5 and again["config"]["loss"] == "lsgan"
    assert again["config"]["features"] == 4
    branch = train(Config(name="branch", resume=str(first), steps=6))
    assert branch.parent.name == "branch" and checkpoint.load(branch)["step"] == 6
    assert checkpoint.load(first)["step"] == 5


def test_resume_takes_the_device_that_was_named_from_the_checkpoint(small):
    """As --device mps, which auto would not take."""
    last = train(Config(**small, steps=1))
    contents = checkpoint.load(last)
    contents["config"]["device"] = "cuda:99"
    checkpoint.save(last, contents)
    settings = {"resume": str(last), "steps": 2}
    with pytest.raises(SettingsError, match="--device cuda:99"):
        train(Config(**settings))
    assert checkpoint.load(train(Config(**settings, device="cpu")))["step"] == 2


def test_resume_refuses_another_setting_naming_both_values(small):
    train(Config(**small, steps=1))
    with pytest.raises(CheckpointError, match=r"--batch_size 8.*last\.pth.*with 4"):
        train(Config(**{**small, "batch_size": 8}, resume="last"))
    with pytest.raises(CheckpointError, match=r"--z_dist uniform.*normal"):
        train(Config(**small, z_dist="uniform", resume="last"))


def test_resume_finds_data_that_has_moved_and_notices_that_it_changed(small, capsys):
    train(Config(**small, steps=1))
    moved = Path(small["data"]).rename(Path(small["data"]).with_name("moved"))
    settings = {**small, "data": str(moved), "name": "images", "resume": "last"}
    assert checkpoint.load(train(Config(**settings, steps=2)))["config"]["data"] == str(moved)
    write_images(moved, 1, first=50)
    train(Config(**settings, steps=3))
    assert "21 images; it had 20" in capsys.readouterr().err
    other = write_images(moved.with_name("other"), 20)
    with pytest.raises(CheckpointError, match="--data"):
        train(Config(**{**settings, "data": str(other)}, steps=4))


@pytest.mark.slow
def test_the_newest_numbered_checkpoints_are_kept_when_the_set_has_grown(small):
    settings = small | {"save_every": 1, "keep": 2}
    last = train(Config(**settings | {"epochs": 4}))
    write_images(Path(small["data"]), 80, first=20)
    train(Config(**settings | {"epochs": 3}, resume="last"))
    kept = {path.name: checkpoint.load(path)["step"] for path in last.parent.glob("epoch_*.pth")}
    assert kept == {"epoch_0002.pth": 50, "epoch_0003.pth": 75}


def test_what_a_crash_left_is_mended_by_resuming(small):
    last = train(Config(**small, steps=4, sample_every=2, save_every=1))
    samples = Path(small["sample_dir"], "images")
    log = samples / "log.jsonl"
    kept = log.read_text()
    log.write_text(
        kept + kept.splitlines()[-1].replace('"step": 4', '"step": 5') + '\n{"step": 6, "ep'
    )
    (samples / "step_0000007.png").write_bytes(b"of a step beyond the checkpoint")
    copy = last.with_name("epoch_0001_good.pth")
    copy.write_bytes(last.read_bytes())
    train(Config(**small, resume="last", save_every=1, keep=1))
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 11))
    assert not (samples / "step_0000007.png").exists()
    assert copy.exists() and last.with_name("epoch_0002.pth").exists()
    assert not last.with_name("epoch_0001.pth").exists()


@pytest.mark.slow
def test_going_back_needs_a_name_of_its_own(small):
    last = train(Config(**small, save_every=1))
    earlier = last.with_name("epoch_0001.pth")
    with pytest.raises(CheckpointError, match="--name"):
        train(Config(resume=str(earlier), epochs=3))
    branch = train(Config(resume=str(earlier), epochs=3, name="branch"))
    assert checkpoint.load(branch)["step"] == 15 and checkpoint.load(last)["step"] == 10


def test_a_finished_run_says_so(small, capsys):
    last = train(Config(**small, steps=2))
    kept = last.read_bytes()
    assert train(Config(**small, steps=2, resume="last")) == last
    assert "has all its 2 steps" in capsys.readouterr().out and last.read_bytes() == kept
    assert train(Config(**small, steps=2, resume=str(last), name="branch")) == last


def test_fewer_images_than_a_batch_train_with_a_warning(small, capsys):
    contents = checkpoint.load(train(Config(**{**small, "batch_size": 128})))
    assert contents["step"] == 2 and contents["epoch"] == 2
    assert "the batch is 20" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_grey_and_transparent_images_train(small, tmp_path, mode):
    small["data"] = str(write_images(tmp_path / mode, 8, mode=mode))
    last = train(Config(**small))
    assert checkpoint.load(last)["config"]["channels"] == len(mode)
    assert Image.open(Path(small["sample_dir"], mode, "step_0000004.png")).mode == mode


def test_mistakes_are_refused_before_anything_is_written(small, tmp_path, images):
    before = sorted(tmp_path.rglob("*"))
    for error, wrong in (
        (DataError, {"data": str(tmp_path / "missing")}),
        (SettingsError, {"device": "toaster"}),
        (CheckpointError, {"resume": str(tmp_path / "missing.pth")}),
        (CheckpointError, {"resume": str(images)}),
    ):
        with pytest.raises(error):
            train(Config(**{**small, **wrong}))
    assert sorted(tmp_path.rglob("*")) == before


def test_settings_of_a_run_repeat_it(small):
    from utils import parse_settings

    last = train(Config(**small, steps=3, mirror=True, seed=5))
    again = parse_settings(Config, "", [f"@{last.parent / 'settings.txt'}", "--name", "again"])
    again = checkpoint.load(train(again))
    assert same(again["generator"], checkpoint.load(last)["generator"])


def test_a_collapsed_run_says_so_once(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(monitor, "BEGUN", 2)  # its images are all grey at first
    train(Config(**small, sample_every=3))
    said = capsys.readouterr().err
    assert said.count("collapsed") == 1 and "--learning_rate" in said
    log = (tmp_path / "samples" / "images" / "log.jsonl").read_text().splitlines()
    entry = json.loads(log[2])
    assert (entry["step"], entry["game"], entry["game_since"]) == (3, "collapsed", 3)
    assert 0 <= entry["variety"] < monitor.NONE_LEFT


def test_a_checkpoint_of_an_older_version_is_resumed(small):
    """Its settings that are no more are dropped; one that nobody knows is refused."""
    last = train(Config(**small, steps=1))
    contents = checkpoint.load(last)
    contents["config"] |= {"on_collapse": "stop"}
    del contents["config"]["r1"]
    checkpoint.save(last, contents)
    assert checkpoint.load(train(Config(**small, resume="last", steps=2)))["step"] == 2
    contents["config"] |= {"from_the_future": 1}
    checkpoint.save(last, contents)
    with pytest.raises(CheckpointError, match="newer version; it has from_the_future"):
        train(Config(**small, resume="last", steps=3))
