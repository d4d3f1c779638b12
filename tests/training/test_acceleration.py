"""The recorded step on a GPU; a machine without one has none to test."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import generate, sample_latents
from serialization import checkpoint
from serialization.resume import restore
from train import LOSSES, Config, build_gan, train, train_step
from training.acceleration import WARM_UP, Graph
from training.inputs import Inputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DEVICE = torch.device("cuda")
CONFIG = {"features": 16, "channels": 3, "image_size": 32, "precision": "fp32"}


def play(steps, graph, players=None, first=0):
    """Play steps on batches of their own, and give the players and each step's metrics."""
    players = players or build_gan(Config(**CONFIG), DEVICE)

    def step(real, z):
        return train_step(players, LOSSES["bce"], real, z)

    step = Graph(step) if graph else step
    metrics = []
    for i in range(first, first + steps):
        torch.manual_seed(i)
        real = torch.rand(8, 3, 32, 32) * 2 - 1
        metrics.append(step(real=real.to(DEVICE), z=torch.randn(8, 100).to(DEVICE)))
    return players, torch.stack(metrics)


def test_a_recorded_step_is_the_step(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    steps = WARM_UP + 5
    plain, expected = play(steps, graph=False)
    recorded, metrics = play(steps, graph=True)
    torch.testing.assert_close(metrics, expected, rtol=1e-3, atol=1e-4)
    assert len({tuple(row) for row in metrics.tolist()}) == steps
    for own, other in zip(plain[:2], recorded[:2], strict=True):
        torch.testing.assert_close(own.state_dict(), other.state_dict(), rtol=1e-2, atol=1e-3)
    assert int(recorded.generator.state_dict()["main.1.num_batches_tracked"]) == steps


@pytest.mark.parametrize("settings", [{}, {"fresh_latents": True, "precision": "fp32"}])
def test_a_run_on_a_gpu_is_resumed_on_a_cpu(small, settings):
    """bf16 by default, the images resident, 10 steps of which most are replayed."""
    settings = small | {"device": "cuda", "mirror": True} | settings
    last = checkpoint.load(train(Config(**settings)))
    assert last["step"] == 10 and all(t.isfinite().all() for t in last["generator"].values())
    assert last["config"]["precision"] == settings.get("precision", "bf16")
    resumed = train(Config(**settings | {"device": "cpu", "epochs": 3}, resume="last"))
    assert checkpoint.load(resumed)["step"] == 15
    log = Path(small["sample_dir"], "images", "log.jsonl").read_text().splitlines()
    assert len({json.loads(line)["loss_d"] for line in log}) == 15


@pytest.mark.parametrize("resident", [True, False])
def test_inputs_on_a_gpu_are_those_of_the_cpu(resident, monkeypatch):
    if not resident:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    images = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), np.uint8)
    config = Config(mirror=True)
    on_cpu = Inputs(config, images, 8, slice(None), torch.device("cpu"))
    on_gpu = Inputs(config, images, 8, slice(None), DEVICE)
    assert (on_gpu.resident is not None) == resident
    for own, other in itertools.islice(zip(on_cpu.steps(0), on_gpu.steps(0), strict=True), 20):
        expected = on_cpu.real(own["real"], own["flip"])
        real = on_gpu.real(other["real"], other["flip"])
        assert real.device.type == "cuda" and torch.equal(real.cpu(), expected)


def test_drawing_between_recorded_steps_and_going_on_from_a_cpu(tmp_path):
    cpu = build_gan(Config(**CONFIG), torch.device("cpu"))
    train_step(cpu, LOSSES["bce"], torch.rand(8, 3, 32, 32), torch.randn(8, 100))
    states = {name: player.state_dict() for name, player in cpu._asdict().items()}
    players = build_gan(Config(**CONFIG), DEVICE)
    restore(players, states | {"path": "x.pth"})
    play(WARM_UP + 2, graph=True, players=players)
    before = generate(players.generator, sample_latents(range(4), 100))
    play(WARM_UP + 2, graph=True, players=players)
    assert not torch.equal(before, generate(players.generator, sample_latents(range(4), 100)))
    states = {name: player.state_dict() for name, player in players._asdict().items()}
    restore(cpu, states | {"path": "x.pth"})
    train_step(cpu, LOSSES["bce"], torch.rand(8, 3, 32, 32), torch.randn(8, 100))
