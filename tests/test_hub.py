"""The networks by torch.hub, from a program whose modules are called as ours are."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_generator
from strangers import Example, at_random

import hubconf
from models import Discriminator, Generator, generate, sample_latents

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
OURS = sorted([*(path.stem for path in ROOT.glob("*.py")), *PACKAGES])

PROGRAM = """
import copy, pickle, sys
import numpy as np, torch
import models, utils, training
from models import Generator

class_of_theirs, path = Generator, list(sys.path)
theirs = {name: sys.modules[name] for name in ("models", "utils", "training")}
hub = {"repo_or_dir": sys.argv[1], "source": "local"}
generator = torch.hub.load(**hub, model="generator", path="own.pth")
foreign = torch.hub.load(**hub, model="generator", path="foreign.pth", activation="relu")

assert sys.path == path and {name: sys.modules[name] for name in theirs} == theirs
assert not set(sys.argv[2:]) & sys.modules.keys() - theirs.keys()
import serialization as another, dataset  # not imported before, and theirs all the same
assert all(module.WHOSE == "theirs" for module in (*theirs.values(), another, dataset))
assert class_of_theirs() == utils.double(21) == 42

again = torch.hub.load(**hub, model="generator", path="own.pth")
assert type(again) is type(generator) is not class_of_theirs and not generator.training
for one in (again, copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
    z = torch.randn(3, one.z_dim)
    assert torch.equal(one(z), generator(z)) and generator(z).std() > 0.01
try:
    torch.hub.load(**hub, model="generator", path="missing.pth")
except ValueError as error:
    assert type(error).__name__ == "CheckpointError" and str(error) == "missing.pth: no such file"
else:
    raise AssertionError("nothing was said of a missing file")
np.save("own.npy", generator(torch.from_numpy(np.load("z.npy"))).detach().numpy())
"""


def test_a_program_with_modules_of_the_same_names_keeps_them(tmp_path):
    for name in OURS:
        (tmp_path / f"{name}.py").write_text("WHOSE = 'theirs'\n")
    with open(tmp_path / "models.py", "a") as file:
        file.write("from utils import double\ndef Generator(): return double(21)\n")
    with open(tmp_path / "utils.py", "a") as file:
        file.write("def double(x): return 2 * x\n")
    own = Generator.from_checkpoint(write_generator(tmp_path / "own.pth", 3))
    torch.save(at_random(Example(12, (16, 8, 6))).state_dict(), tmp_path / "foreign.pth")
    z = sample_latents(range(5), own.z_dim)
    np.save(tmp_path / "z.npy", z.numpy())

    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py", ROOT, *OURS],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.allclose(np.load(tmp_path / "own.npy"), generate(own, z), atol=1e-5)


def test_the_discriminator_comes_too(tmp_path):
    discriminator = at_random(Discriminator(4, 3, 16))
    torch.save(discriminator.state_dict(), tmp_path / "d.pth")
    loaded = torch.hub.load(ROOT, "discriminator", source="local", path=tmp_path / "d.pth")
    x = torch.rand(3, 3, 16, 16) * 2 - 1
    assert torch.allclose(loaded(x), discriminator.eval()(x), atol=1e-5)


def test_the_hub_offers_two_networks():
    offered = [n for n, value in vars(hubconf).items() if callable(value) and n[0] != "_"]
    assert offered == ["generator", "discriminator"]


def test_without_a_path_it_is_the_checkpoint_that_comes_with_the_copy(tmp_path):
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name)
    with pytest.raises(ValueError, match=r"cats64\.pth: no such file"):
        torch.hub.load(tmp_path, "generator", source="local")
    (tmp_path / "checkpoints").mkdir()
    write_generator(tmp_path / "checkpoints" / "cats64.pth")
    assert torch.hub.load(tmp_path, "generator", source="local").image_size == (12, 16)
