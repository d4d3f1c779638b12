"""Files of other programs: what is refused, and the commands that read and write them."""

import argparse
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from strangers import (
    TAIL,
    Example,
    Numbered,
    at_random,
    chain,
    down,
    plain_critic,
    same_images,
    up,
)
from test_probe import write_classes
from torch import nn

import probe
from evaluate import Request as Evaluation
from evaluate import evaluate
from generate import Request, generate_batches, generate_images
from models import Discriminator, Generator, sample_latents
from serialization import checkpoint
from serialization.checkpoint import CheckpointError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pair():
    """A small generator and its discriminator, of 64x64 pixels."""
    torch.manual_seed(1)
    return at_random(Example(7, (16, 8, 6, 4))), at_random(Discriminator(4, 3, 64))


def write(path):
    path.touch()


# Refusals ----------------------------------------------------------------------------------------


class Conditional(Example):
    def __init__(self):
        super().__init__(7, (16, 8, 6, 4))
        self.label_emb = nn.Embedding(10, 7)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, *TAIL), nn.Conv2d(8, 16, *TAIL)
        self.up1, self.up2 = nn.ConvTranspose2d(16, 8, *TAIL), nn.ConvTranspose2d(16, 3, *TAIL)


AUTOENCODER = [*down(3, 8, *TAIL), *down(8, 16, *TAIL), *up(16, 8, *TAIL), *up(8, 3, *TAIL)]
REFUSED = {
    "dense": (lambda: nn.Sequential(nn.Linear(9, 64), nn.Linear(64, 784)), "dense network"),
    "autoencoder": (lambda: nn.Sequential(*AUTOENCODER), "encoder-decoder"),
    "U-Net": (UNet, "encoder-decoder"),
    "resnet": (torchvision.models.resnet18, "classifier: it ends in 1000 outputs"),
    "vgg": (lambda: nn.Sequential(*down(3, 8, 3), nn.Flatten(), nn.Linear(72, 10)), "classifier"),
    "conditional": (Conditional, "conditional: 'label_emb'"),
    "other norm": (lambda: chain(*up(8, 4, 4), nn.GroupNorm(2, 4)), "no convolution"),
    "odd": (lambda: nn.LSTM(3, 4), "as no DCGAN does"),
    "empty": (lambda: nn.ReLU(), "holds no weights"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_what_is_no_dcgan_is_refused_by_what_it_is(tmp_path, network, name):
    make, says = REFUSED[name]
    torch.save({"model": make().state_dict()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=says) as caught:
        network.from_checkpoint(tmp_path / "a.pth")
    assert "a.pth" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_network_of_the_other_kind_is_named(tmp_path, pair):
    for network, kind in zip(pair, ("generator", "discriminator"), strict=True):
        torch.save(network.state_dict(), tmp_path / f"{kind}.pth")
    with pytest.raises(CheckpointError, match="holds a discriminator, but no generator"):
        Generator.from_checkpoint(tmp_path / "discriminator.pth")
    with pytest.raises(CheckpointError, match="holds a generator, but no discriminator"):
        Discriminator.from_checkpoint(tmp_path / "generator.pth")


class Call:
    """What calls a function when it is unpickled without care."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("legacy", [False, True])
def test_what_stands_beside_weights_is_not_run(tmp_path, pair, legacy):
    path, proof = tmp_path / "a.pth", tmp_path / "proof"
    beside = {
        "options": argparse.Namespace(nz=7, folder=Path("x")), "loss": np.float64(3),
        "losses": np.arange(3), "callbacks": {Example: {}}, "call": Call(write, proof),
    }  # fmt: skip
    for key, more in beside.items():
        contents = {"netG": pair[0].state_dict(), key: more}
        torch.save(contents, path, _use_new_zipfile_serialization=not legacy)
        if legacy and key == "callbacks":  # whose classes have their source beside them
            with pytest.raises(CheckpointError, match=r"a\.pth is no checkpoint.*would open alone"):
                Generator.from_checkpoint(path)
        else:
            same_images(path, pair[0], 7)
    torch.save({"netG": pair[0].state_dict(), "call": Call(os.mkdir, str(proof))}, path)
    with pytest.raises(CheckpointError, match=r"a\.pth holds more than weights.*state_dict\(\)"):
        Generator.from_checkpoint(path)
    assert not proof.exists()


def test_networks_that_were_pickled_whole_are_taken_apart(tmp_path, pair):
    torch.save({"G": nn.DataParallel(pair[0]), "epoch": 3}, tmp_path / "a.pth")
    same_images(tmp_path / "a.pth", pair[0], 7)
    nest = nn.Sequential()
    for _ in range(40):
        nest = nn.Sequential(nest, nest)
    nest.add_module("itself", nest)
    torch.save(nest, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds no weights"):
        Generator.from_checkpoint(tmp_path / "a.pth")


def test_small_files_claim_no_gigabytes(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one, last, wide = torch.zeros(1), torch.zeros(8, 3, 4, 4), 1 << 13
    claims = {
        "shapes": {"0.weight": one.expand(1 << 17, 1 << 17, 4, 4),
                   "1.weight": one.expand(1 << 17, 8, 4, 4), "2.weight": last},
        "maps": {f"{i}.weight": torch.zeros(*shape) for i, shape in enumerate(
            [(2, 8, 4, 4), *[(8, 8, 4, 4)] * 4, (8, wide, 1, 1), (wide, 3, 1, 1)])},
        "layers": {f"{i}.weight": one.expand(3, 3, 3, 3) for i in range(10_000)},
        "dots": {"a." * 5000 + "weight": last, "b.weight": torch.zeros(3, 3, 4, 4)},
        "nan": {f"{i}.weight": torch.full((3, 3, 4, 4), torch.nan) for i in range(4)},
    }  # fmt: skip
    for name, state in claims.items():
        torch.save(state, tmp_path / "a.pth")
        for network in (Generator, Discriminator):
            with pytest.raises(CheckpointError, match=r"a\.pth"):
                network.from_checkpoint(tmp_path / "a.pth")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (1 << 19), name


ODD = {
    "norm without channels": {"main.1.running_mean": torch.tensor(1.0)},
    "kernel of none": {"main.3.weight": torch.zeros(16, 8, 0, 4)},
    "name that no number has room for": {f"{'9' * 5000}.weight": torch.zeros(3, 3, 4, 4)},
    "weight in odd parts": {"main.9.weight_v": torch.zeros(6, 4, 4, 4),
                            "main.9.weight_g": torch.zeros(1, 1, 1, 1, 1)},
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_tensors_of_odd_shapes_are_one_line(tmp_path, name):
    state = dict(at_random(Example(7, (16, 8, 6, 4))).state_dict())
    if "main.9.weight_v" in ODD[name]:
        del state["main.9.weight"]
    else:
        del state["main.1.weight"], state["main.1.bias"]  # whose shape would count
    torch.save(state | ODD[name], tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth") as caught:
        Generator.from_checkpoint(tmp_path / "a.pth")
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 1000


def test_nests_without_end_are_walked_once(tmp_path, pair):
    nest = []
    for _ in range(40):
        nest = [nest, nest]
    torch.save({"nest": nest, "G": pair[0].state_dict()}, tmp_path / "a.pth")
    same_images(tmp_path / "a.pth", pair[0], 7)


# The commands ------------------------------------------------------------------------------------


def test_generate_draws_from_a_strangers_file(tmp_path):
    stranger = at_random(Numbered())
    torch.save({"generator": stranger.state_dict(), "params": {"nz": 12}}, tmp_path / "celeba.pth")
    done = subprocess.run(
        [sys.executable, ROOT / "generate.py", "--load_path", "celeba.pth", "--num_output", "4",
         "--device", "cpu", "--output", "grid.png"],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "celeba.pth: a foreign generator under 'generator', 12-16-8-6-3, 32x32" in done.stdout
    with torch.no_grad():
        theirs = stranger(sample_latents(range(4), 12))
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    levels = ((theirs[0].permute(1, 2, 0) + 1) * 127.5).numpy()
    assert np.abs(grid[2:34, 2:34] - levels).max() < 1.01


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("generate.py --load_path D.pth", "D.pth holds a discriminator, but no generator"),
        (
            "probe.py --load_path G.pth --data digits",
            "G.pth holds a generator, but no discriminator",
        ),
        ("generate.py --load_path G.pth --image_size big", "--image_size big"),
        ("generate.py --load_path G.pth --activation swish", "--activation"),
        ("generate.py --load_path G.pth --image_size 9", "can't draw 9x9 pixels"),
        ("generate.py --load_path G.pth --export_state_dict G.pth", "the checkpoint itself"),
        ("generate.py --load_path G.pth --export_state_dict Y.png", "must be a .pth file"),
        ("generate.py --load_path G.pth --export_state_dict Y.pth --seed 3", "--seed"),
        ("generate.py --load_path G.pth --export_state_dict G.pth/Y.pth", "G.pth can't be written"),
        ("train.py --resume G.pth", "G.pth is no checkpoint of train.py"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, pair, arguments, says):
    monkeypatch.chdir(tmp_path)
    for network, name in zip(pair, "GD", strict=True):
        torch.save(network.state_dict(), f"{name}.pth")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(sys, "argv", [str(ROOT / arguments.split()[0]), *arguments.split()[1:]])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(sys.argv[0], run_name="__main__")
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and len(said.splitlines()) == 1 and says in said, said
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_evaluate_and_its_discriminator_features(tmp_path, images, pair):
    path = tmp_path / "a.pth"
    torch.save({name: n.state_dict() for name, n in zip("GD", pair, strict=True)}, path)
    lines = evaluate(
        Evaluation(load_path=str(path), data=str(images), feature_network="discriminator",
                   cache_dir=str(tmp_path / "cache"), device="cpu")
    )  # fmt: skip
    assert lines[0]["image_size"] == "64x64" and np.isfinite(lines[0]["value"])


def test_probe_reads_a_strangers_discriminator(tmp_path):
    stranger = at_random(nn.Sequential(*plain_critic()))
    torch.save({"netD": stranger.state_dict()}, tmp_path / "a.pth")
    folder = write_classes(tmp_path / "colours", 20)
    lines = probe.probe(
        probe.Request(load_path=str(tmp_path / "a.pth"), data=str(folder), device="cpu")
    )
    assert [line["features"] for line in lines] == ["discriminator", "untrained", "raw pixels"]
    assert lines[0]["dimensions"] == (4 + 8 + 8) * 16 and lines[0]["accuracy"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("no_ema", [False, True])
def test_the_pytorch_example_loads_what_is_exported(tmp_path, no_ema):
    torch.manual_seed(0)
    networks = [at_random(Generator(100, 64, 3), seed) for seed in (1, 2)]
    config = {"z_dim": 100, "features": 64, "channels": 3, "image_size": "64", "max_features": 1024,
              "norm": "batch", "activation": "relu", "z_dist": "normal"}  # fmt: skip
    states = dict(
        zip(("generator", "generator_ema"), (n.state_dict() for n in networks), strict=True)
    )
    checkpoint.save(tmp_path / "a.pth", {"config": config, **states})
    request = {"load_path": str(tmp_path / "a.pth"), "no_ema": no_ema, "device": "cpu"}
    output = generate_images(Request(**request, export_state_dict=str(tmp_path / "new" / "Y.pth")))
    state = torch.load(output, weights_only=True)
    example = Example()
    example.load_state_dict(state, strict=True)
    own = Generator.from_checkpoint(tmp_path / "a.pth", average=not no_ema)
    same_images(output, example.eval(), 100)
    again = Generator.from_checkpoint(output)
    for (_, ours), (_, theirs) in zip(
        generate_batches(own, [3, 4]), generate_batches(again, [3, 4]), strict=True
    ):
        assert np.array_equal(ours, theirs)
    assert not (tmp_path / "samples").exists()


def test_a_stranger_is_exported_with_the_examples_names(tmp_path):
    stranger = at_random(Numbered())
    torch.save({"netG": stranger.state_dict()}, tmp_path / "a.pth")
    request = Request(load_path=str(tmp_path / "a.pth"), export_state_dict=str(tmp_path / "b.pth"))
    example = Example(12, (16, 8, 6))
    example.load_state_dict(torch.load(generate_images(request), weights_only=True), strict=True)
    z = torch.randn(3, 12)
    with torch.no_grad():
        assert torch.allclose(example.eval()(z), stranger(z), atol=1e-5)
