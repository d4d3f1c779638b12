"""Checkpoints: written whole, read without being run, and refused in one line when damaged."""

import errno
import os
import pickle
import pickletools
import stat
import zipfile

import pytest
import torch

from models import Generator
from serialization import checkpoint
from serialization.checkpoint import CheckpointError


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"step": 3, "generator": {"w": torch.arange(4.0)}})
    contents = checkpoint.load(path)
    assert contents["format"] == checkpoint.FORMAT and contents["step"] == 3
    assert torch.equal(contents["generator"]["w"], torch.arange(4.0))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_a_save_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"step": 1})
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        checkpoint.save(path, {"step": lambda: 2})
    assert checkpoint.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.skipif(os.name != "posix", reason="flushes no folders")
def test_a_folder_whose_flush_fails_is_named(tmp_path, monkeypatch):
    """The file is in its place by then."""

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output") as caught:
        checkpoint.save(tmp_path / "a.pth", {"step": 1})
    assert caught.value.filename == str(tmp_path / "a.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def damaged(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda data: b"", "no checkpoint"),
        (lambda data: b"some text\n", "no checkpoint"),
        (lambda data: data[: len(data) // 2], "cut short"),
        (damaged, "checksum"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path, make, says):
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"weights": torch.randn(10_000)})
    path.write_bytes(make(path.read_bytes()))
    with pytest.raises(CheckpointError, match=f"a.pth.*{says}"):
        checkpoint.load(path)


def test_a_missing_file_a_folder_and_a_stranger_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.load(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="folder"):
        checkpoint.load(tmp_path)
    for contents, missing in (({"config": {}}, "generator"), ({"generator": {}}, "config")):
        checkpoint.save(tmp_path / "c.pth", contents)
        with pytest.raises(CheckpointError, match=rf"c\.pth holds no {missing}$"):
            Generator.from_checkpoint(tmp_path / "c.pth")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="format"):
        checkpoint.load(tmp_path / "b.pth")


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"format": checkpoint.FORMAT, "config": Payload()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "a.pth")
    assert not (tmp_path / "executed").exists()


def test_a_file_that_torch_and_zipfile_read_differently_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    sparse = torch.sparse_coo_tensor([[0], [0]], [1.0], (2, 2), check_invariants=True)
    torch.save({"w": sparse}, path, _use_new_zipfile_serialization=False)
    legacy = path.read_bytes().removeprefix(checkpoint.LEGACY)
    assert len(legacy) < path.stat().st_size
    longer = b"\x80\x02\x8a\x0b" + checkpoint.LEGACY[4:14] + b"\0."  # the same number
    assert pickle.loads(longer) == pickle.loads(checkpoint.LEGACY)
    with zipfile.ZipFile(tmp_path / "harmless.zip", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
        archive.infolist()[0].external_attr = 0
    path.write_bytes(longer + legacy + (tmp_path / "harmless.zip").read_bytes())
    with pytest.raises(CheckpointError, match=r"a\.pth is no checkpoint"):
        checkpoint.read(path)


def test_the_names_of_a_legacy_file_s_storages_are_looked_at_too(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    with open(path, "rb") as file:
        for _ in range(4):
            list(pickletools.genops(file))
        contents = path.read_bytes()[: file.tell()]
    path.write_bytes(contents + pickle.dumps(print, 2))
    with pytest.raises(CheckpointError, match="it calls '__builtin__ print'"):
        checkpoint.read(path)


def test_nobody_is_advised_to_run_a_file(tmp_path, recwarn):
    path = tmp_path / "a.pth"
    torch.save({"w": torch.zeros(2)}, path, pickle_protocol=4)  # which torch reads only so
    with pytest.raises(CheckpointError, match=r"a\.pth.*state_dict\(\) would open") as refused:
        checkpoint.read(path)
    assert "weights_only" not in str(refused.value) and not recwarn


def test_from_checkpoint_gives_the_generator_that_was_saved(tmp_path):
    generator = Generator(6, 4, 1, (16, 24), 32, "none", "leaky_relu", "uniform")
    config = {
        "z_dim": 6, "features": 4, "channels": 1, "image_size": "16x24", "max_features": 32,
        "norm": "none", "activation": "leaky_relu", "z_dist": "uniform", "epochs": 3,
    }  # fmt: skip
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"config": config, "generator": generator.state_dict()})
    loaded = Generator.from_checkpoint(path)
    assert not loaded.training and (loaded.z_dim, loaded.z_dist) == (6, "uniform")
    assert (loaded.channels, loaded.image_size) == (1, (16, 24))
    z = torch.randn(2, 6)
    assert torch.allclose(loaded(z), generator(z), atol=1e-6)


def generator_file(path, config=None, weights=None):
    """Write a small generator's checkpoint, with some of its settings or weights replaced."""
    settings = {"z_dim": 8, "features": 4, "channels": 1, "max_features": 64, "norm": "batch",
                "activation": "relu", "z_dist": "normal"}  # fmt: skip
    state = Generator(**settings, image_size=16).state_dict() | (weights or {})
    config = settings | {"image_size": "16"} | (config or {})
    checkpoint.save(path, {"config": config, "generator": state})
    return path


def test_a_small_file_that_claims_gigabytes_is_refused_before_they_are(tmp_path):
    resource = pytest.importorskip("resource")
    generator_file(tmp_path / "plain.pth")
    assert Generator.from_checkpoint(tmp_path / "plain.pth").image_size == (16, 16)
    huge = {"main.0.weight": torch.zeros(1).expand(1 << 17, 1 << 17, 4, 4)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for config, weights in (
        ({"z_dim": 1 << 17, "features": 1 << 17, "max_features": 1 << 17}, huge),
        ({"features": 1 << 17, "max_features": 1 << 17}, None),
        ({"features": 1 << 40, "max_features": 1 << 40}, None),
    ):
        path = generator_file(tmp_path / "huge.pth", config, weights)
        assert path.stat().st_size < 100_000
        with pytest.raises(CheckpointError, match=r"huge\.pth"):
            Generator.from_checkpoint(path)
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 28))
    with pytest.raises(CheckpointError, match="compressed"):
        checkpoint.load(tmp_path / "bomb.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (1 << 19)  # in KB


@pytest.mark.parametrize(
    "config",
    [
        {"z_dim": "eight"},
        {"image_size": 16},
        {"image_size": "9999"},
        {"norm": "x"},
        {"z_dim": 9},
        {"channels": 2},
    ],
)
def test_settings_that_do_not_fit_are_one_line(tmp_path, config):
    path = generator_file(tmp_path / "odd.pth", config)
    with pytest.raises(CheckpointError, match=r"odd\.pth"):
        Generator.from_checkpoint(path)
