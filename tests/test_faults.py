"""Faults under a run: full disks, damaged files, numbers that leave the range of floats."""

import pytest
import torch

import checkpoint
from checkpoint import CheckpointError
from record import Record
from train import Config, Diverged, train


def test_what_cannot_be_written_is_warned_of_and_at_the_end_raised(tmp_path, capsys):
    nowhere = tmp_path / "missing" / "last.pth"
    with pytest.raises(FileNotFoundError, match="missing"), Record(tmp_path) as record:
        for _ in range(20):
            record.later(checkpoint.save, nowhere, {})
    assert capsys.readouterr().err.count("training goes on") >= 10
    with pytest.raises(ZeroDivisionError), Record(tmp_path) as record:
        record.later(checkpoint.save, tmp_path / "whole.pth", {})
        record.later(checkpoint.save, nowhere, {})
        raise ZeroDivisionError  # training's own error is what a reader needs to see
    assert checkpoint.load(tmp_path / "whole.pth")


def test_a_full_disk_keeps_the_checkpoint_that_is_there(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "last.pth"
    checkpoint.save(path, {"step": 1})
    kept = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) + 100, limits[1]))  # bytes of a file
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            checkpoint.save(path, {"step": 2, "weights": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == kept and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("settings", [{}, {"log_every": 3}, {"log_every": 5, "save_every": 1}])
def test_a_run_that_diverges_names_its_step_and_writes_nothing_of_it(small, tmp_path, settings):
    small |= settings | {"loss": "lsgan", "precision": "fp32", "sample_every": 4}
    last = train(Config(**small, steps=5, learning_rate=1e-4))
    state = torch.load(last, weights_only=True)
    for group in state["optimizer_d"]["param_groups"]:
        group["lr"] = 1e20
    checkpoint.save(last, state)
    with pytest.raises(Diverged, match=r"step 6 "):
        train(Config(**small, resume="last", steps=20))
    assert checkpoint.load(last)["step"] == 5
    log = (tmp_path / "samples" / "pictures" / "log.jsonl").read_text()
    assert "NaN" not in log and "Infinity" not in log
    grids = sorted((tmp_path / "samples" / "pictures").glob("step_*.png"))
    assert int(grids[-1].stem.removeprefix("step_")) == 5


def test_resume_goes_back_past_checkpoints_that_are_damaged(small, capsys):
    last = train(Config(**small, save_every=1))
    second = last.with_name("epoch_0002.pth")
    for path in (last, second):
        data = bytearray(path.read_bytes())
        weights = checkpoint.load(path)["generator"]["main.0.weight"]
        data[data.index(bytes(weights.untyped_storage()))] ^= 1
        path.write_bytes(data)
    resumed = train(Config(**small | {"epochs": 3}, resume="last"))
    said = capsys.readouterr().err
    assert said.count("going on from") == 2 and "epoch_0001.pth" in said
    assert checkpoint.load(resumed)["step"] == 15
    for path in last.parent.glob("*.pth"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"last\.pth"):
        train(Config(**small | {"epochs": 4}, resume="last"))


def test_what_a_killed_writer_left_is_swept(small):
    last = train(Config(**small, steps=1))
    left = last.with_name(".last.pth.123.tmp")
    left.write_bytes(b"half a checkpoint")
    train(Config(**small, resume="last", steps=2))
    assert not left.exists()
