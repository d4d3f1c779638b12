"""Faults under a run: full disks, damaged files, numbers that leave the range of floats."""

import contextlib
import errno
import json
import os
import shutil
import threading
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import small_run, write_images
from PIL import Image
from tqdm import tqdm

from serialization import checkpoint
from serialization.checkpoint import CheckpointError
from train import Config, train
from training.logger import Diverged, open_logger, read_log
from training.plots import animate, plot_log
from training.setup import Schedule

IMAGES = np.zeros((4, 16, 16, 3), np.uint8)
BAR = tqdm(disable=True)


@pytest.fixture
def logger(small):
    """The logger of a run of two epochs of 5 steps, as train.py opens it."""
    config = Config(**small, name="run")

    @contextlib.contextmanager
    def opened(**settings):
        with open_logger(
            replace(config, **settings), Schedule(4, 5, 0, 10), None, IMAGES, (0, 1)
        ) as logger:
            yield logger

    return opened


def test_what_cannot_be_written_is_warned_of_and_at_the_end_raised(logger, tmp_path, capsys):
    nowhere = tmp_path / "missing" / "last.pth"
    with pytest.raises(FileNotFoundError, match="missing"), logger() as opened:
        for _ in range(20):
            opened._later(checkpoint.save, nowhere, {})
    assert capsys.readouterr().err.count("training goes on") == 1  # for all 20
    with pytest.raises(ZeroDivisionError), logger() as opened:
        opened._later(checkpoint.save, tmp_path / "whole.pth", {})
        opened._later(checkpoint.save, nowhere, {})
        raise ZeroDivisionError  # training's own error is what a reader needs to see
    assert checkpoint.load(tmp_path / "whole.pth")


def test_a_run_goes_on_when_a_user_clears_its_samples_away(logger, capsys):
    losses = {"loss_d": 1.0, "loss_g": 1.0, "d_real": 0.5, "d_fake": 0.5}
    with logger() as opened:
        opened.log(1, losses, BAR)
        opened.pending[-1].result()
        shutil.rmtree(opened.folder)
        for step in range(2, 12):
            opened.log(step, losses, BAR)
            opened.pending[-1].exception()
        opened.folder.mkdir()
        opened.log(12, losses, BAR)
    assert capsys.readouterr().err.count("training goes on") == 1
    assert [entry["step"] for entry in read_log(opened.log_path)] == [12]
    plot_log(opened.folder / "losses.png", read_log(opened.log_path))
    assert Image.open(opened.folder / "losses.png").size[0] == 900
    animate(opened.folder / "training.webp", [])
    plot_log(opened.folder / "empty.png", [])
    assert {path.name for path in opened.folder.iterdir()} == {"log.jsonl", "losses.png"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_goes_on_without_tensorboard_when_its_file_cannot_be_written(logger, capsys):
    pytest.importorskip("tensorboard")
    before = threading.enumerate()
    losses = {"loss_d": 1.0, "loss_g": 1.0, "d_real": 0.5, "d_fake": 0.5}
    with logger(tensorboard=True) as opened:
        [events] = opened.folder.glob("events*")
        events.unlink()
        events.mkdir()
        for step in range(5):
            opened.log(step, losses, BAR)
    for thread in set(threading.enumerate()).difference(before):
        thread.join(10)  # TensorBoard's own, whose error is then this test's
    assert [entry["step"] for entry in read_log(opened.log_path)] == list(range(5))
    assert capsys.readouterr().err.count("TensorBoard gets no more") == 1


def test_a_disk_without_locks_trains_with_a_warning(small, monkeypatch, capsys):
    def acquire(self, blocking=True):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("training.logger.FileLock.acquire", acquire)
    assert checkpoint.load(train(Config(**small)))["step"] == 10
    assert "this disk has no locks" in capsys.readouterr().err


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


@pytest.mark.parametrize("settings", [{}, {"log_every": 5, "save_every": 1}])
def test_a_run_that_diverges_names_its_step_and_writes_nothing_of_it(small, tmp_path, settings):
    small |= settings | {"loss": "lsgan", "sample_every": 4}
    last = train(Config(**small, steps=5, learning_rate=1e-4))
    state = torch.load(last, weights_only=True)
    for group in state["optimizer_d"]["param_groups"]:
        group["lr"] = 1e20
    checkpoint.save(last, state)
    with pytest.raises(Diverged, match=r"step 6 "):
        train(Config(**small, resume="last", steps=20))
    assert checkpoint.load(last)["step"] == 5
    log = (tmp_path / "samples" / "images" / "log.jsonl").read_text()
    assert "NaN" not in log and "Infinity" not in log
    grids = sorted((tmp_path / "samples" / "images").glob("step_*.png"))
    assert int(grids[-1].stem.removeprefix("step_")) == 5
    assert all(json.loads(line)["step"] <= 5 for line in log.splitlines())


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
    assert said.count("resuming from") == 2 and "epoch_0001.pth" in said
    assert checkpoint.load(resumed)["step"] == 15
    for path in last.parent.glob("*.pth"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"last\.pth"):
        train(Config(**small | {"epochs": 4}, resume="last"))


def test_moments_that_are_not_finite_are_not_saved_either(small, tmp_path):
    """Squares of such gradients overflow in Adam while all that the networks give is finite."""
    last = train(Config(**small, steps=5))
    state = checkpoint.load(last)
    state["optimizer_g"]["state"][0]["exp_avg_sq"].fill_(3.4e38)
    state["optimizer_g"]["param_groups"][0]["betas"] = (0.5, -9.0)  # what makes them grow
    checkpoint.save(last, state)
    with pytest.raises(Diverged):
        train(Config(**small, resume="last", steps=10))
    assert checkpoint.load(last)["step"] == 5
    log = (tmp_path / "samples" / "images" / "log.jsonl").read_text().splitlines()
    assert all(json.loads(line)["step"] <= 9 for line in log)
    assert not (tmp_path / "samples" / "images" / "step_0000010.png").exists()


def shape(state):
    state["optimizer_g"]["state"][0]["exp_avg_sq"] = torch.zeros(3)


def moment(state):
    del state["optimizer_d"]["state"][0]["exp_avg"]


def network(state):
    state["discriminator"]["main.0.weight"] = torch.zeros(3)


def kind(state):
    state["optimizer_g"] = 3


def counts(state):
    state["step"] = -5


def names(state):
    state["config"][5] = "five"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a run of 5 steps."""
    folder = tmp_path_factory.mktemp("trained")
    write_images(folder / "images", 20)
    return train(Config(**small_run(folder), steps=5))


@pytest.mark.parametrize("spoil", [shape, moment, network, kind, counts, names])
def test_a_state_that_does_not_fit_is_refused(small, trained, tmp_path, spoil):
    """Adam in one kernel would write where no moments are."""
    state = checkpoint.load(trained)
    spoil(state)
    checkpoint.save(tmp_path / "spoilt.pth", state)
    with pytest.raises(CheckpointError, match=r"spoilt\.pth"):
        train(Config(**small, resume=tmp_path / "spoilt.pth", steps=10))


def test_every_bit_of_an_archives_directory_is_checked(trained, tmp_path):
    """A bit that calls an entry a folder would leave its tensor unread, whatever the checksum."""
    whole, path = trained.read_bytes(), tmp_path / "a.pth"
    for entry in zipfile.ZipFile(trained).infolist():
        named = whole.rindex(entry.filename.encode())  # in the directory, at the end of the file
        data = bytearray(whole)
        data[named - 8] ^= 0x10  # its attributes, which stand 8 bytes before its name
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(path)


def test_a_run_without_its_last_checkpoint_goes_on_from_the_one_before(small, tmp_path, capsys):
    last = train(Config(**small, save_every=1))
    last.unlink()
    train(Config(**small | {"epochs": 3}, resume="last"))
    assert "epoch_0002.pth" in capsys.readouterr().err
    log = (tmp_path / "samples" / "images" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(1, 16))
    assert [path.name for path in (tmp_path / "samples").glob("images*")] == ["images"]


def test_two_processes_do_not_write_one_run(small, tmp_path):
    """Neither its checkpoints nor its log and images."""
    config = Config(**small, name="images")
    with open_logger(config, Schedule(4, 5, 0, 10), None, IMAGES, (0, 1)) as logger:
        logger.pending[-1].result()
        before = sorted(tmp_path.rglob("*"))
        for place in ("checkpoint_dir", "sample_dir"):
            other = replace(config, **{place: str(tmp_path / "cache" / "other")})
            with pytest.raises(CheckpointError, match="images is being written by another"):
                train(other)
        assert sorted(path for path in tmp_path.rglob("*") if "cache" not in str(path)) == before
    assert checkpoint.load(train(config))["step"] == 10


def test_one_folder_may_take_both_checkpoints_and_images(small, tmp_path):
    last = train(Config(**small | {"sample_dir": small["checkpoint_dir"]}, steps=2))
    assert {"last.pth", "log.jsonl", "real.png"} <= {path.name for path in last.parent.iterdir()}


def test_a_grid_that_cannot_be_read_is_left_out_of_the_animation(small, tmp_path, capsys):
    train(Config(**small))
    samples = tmp_path / "samples" / "images"
    frames = Image.open(samples / "training.webp").n_frames
    grid = samples / "step_0000005.png"
    grid.write_bytes(grid.read_bytes()[:200])
    (samples / "step_7.txt").write_text("a note")
    train(Config(**small | {"epochs": 3}, resume="last"))
    assert "step_0000005.png can't be read" in capsys.readouterr().err
    assert Image.open(samples / "training.webp").n_frames == frames
    assert (samples / "step_7.txt").exists()


def test_what_a_killed_writer_left_is_swept(small):
    last = train(Config(**small, steps=1))
    left = last.with_name(".last.pth.123.tmp")
    left.write_bytes(b"half a checkpoint")
    train(Config(**small, resume="last", steps=2))
    assert not left.exists()
