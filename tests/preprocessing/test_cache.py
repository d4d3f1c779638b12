"""The cache of decoded images: whole or not there, and of the images that were asked for."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_images

from dataset import load
from preprocessing import cache
from preprocessing import decode as decoding
from preprocessing.cache import clear, open_cached
from preprocessing.sources import DataError, find

ROOT = Path(__file__).parents[2]


def caches(folder="cache"):
    return sorted(path.name for path in Path(folder).iterdir())


def opened(folder, size=(8, 8), channels=None, cache_dir="cache"):
    return open_cached(find(str(folder)), size, channels, str(cache_dir), "set")


def spoil(path):
    """Overwrite the first half of a file with zeros, its size and time kept: only reading tells."""
    status = path.stat()
    data = path.read_bytes()
    path.write_bytes(bytes(len(data) // 2) + data[len(data) // 2 :])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_later_start_decodes_nothing(images):
    (images / "bad.png").write_bytes(b"")
    first = opened(images)
    for path in images.iterdir():
        spoil(path)
    later = opened(images)
    assert np.array_equal(first.images, later.images) and first[1:] == later[1:]
    assert [name for name, _ in later.skipped] == ["bad.png"]
    assert later.modes == {"RGB": 20} and later.sizes == {"24x20": 20}


def test_the_array_is_a_mapped_file_that_is_never_changed(images):
    images = opened(images).images
    file = Path("cache", *caches(), "pixels")
    before = file.read_bytes()
    assert before == images.tobytes() and isinstance(images.base, np.memmap)
    images[:] = 0
    assert file.read_bytes() == before


def touched(folder):
    os.utime(folder / "0003.png", ns=(1, 1))


def replaced(folder):
    write_images(folder, 1, first=3, size=(24, 20))


def closed(folder):
    (folder / "0003.png").chmod(0o400)


def removed(folder):
    (folder / "0003.png").unlink()


def added(folder):
    write_images(folder, 1, first=30)


def renamed(folder):
    (folder / "0003.png").rename(folder / "x.png")


@pytest.mark.parametrize("change", [touched, replaced, closed, removed, added, renamed])
def test_what_it_was_made_from_decides(images, change):
    opened(images)
    change(images)
    again = opened(images, cache_dir="fresh")
    assert np.array_equal(opened(images).images, again.images) and len(caches()) == 2


def test_size_channels_and_versions_decide_and_the_place_does_not(images, tmp_path, monkeypatch):
    opened(images)
    assert opened(images, size=(8, 12)).images.shape[1:] == (8, 12, 3)
    assert opened(images, channels=1).images.shape[1:] == (8, 8, 1)
    assert opened(images, channels=3).images.shape[1:] == (8, 8, 3)  # as those that were found
    assert len(caches()) == 3
    moved = images.rename(tmp_path / "moved")
    opened(moved)
    assert len(load(str(moved), (8, 8))) == 20
    assert len(caches()) == 3
    monkeypatch.setattr(cache.PIL, "__version__", "99")
    opened(moved)
    assert len(caches()) == 4


def test_an_archive_and_an_array_have_caches_too(images):
    archive = shutil.make_archive("set", "zip", images)
    assert len(opened(archive).images) == 20
    assert len(opened("digits").images) == 1797
    spoil(Path(archive))
    assert len(opened(archive).images) == 20
    assert len(opened("digits").images) == 1797
    assert len(caches()) == 2
    os.utime(archive, ns=(1, 1))
    opened(archive)
    assert len(caches()) == 3


def test_channels_that_the_sample_misses_are_found(tmp_path):
    """One grey image in 200 makes the rest, colour with alpha, lose it; none of it is sampled."""
    write_images(tmp_path / "set", 200, size=(8, 8), mode="RGBA")
    write_images(tmp_path / "set", 1, size=(8, 8), mode="L", first=198)
    found = find(str(tmp_path / "set"))
    assert "0198.png" not in found.names[:: -(-200 // cache.SAMPLE)]
    assert opened(tmp_path / "set").images.shape == (200, 8, 8, 3)


def test_many_images_keep_their_order_in_worker_processes(tmp_path, monkeypatch):
    """Also where more chunks wait than may, and where some can't be read."""
    folder = write_images(tmp_path / "set", 300, size=(8, 8))
    (folder / "0100.png").write_bytes(b"")
    alone = opened(folder).images
    monkeypatch.setattr(decoding, "CHUNK", 4)
    monkeypatch.setattr(decoding, "FILES_PER_PROCESS", 100)
    monkeypatch.setattr(decoding.os, "cpu_count", lambda: 2)
    assert np.array_equal(opened(folder, cache_dir="other").images, alone) and len(alone) == 299


def test_a_build_that_is_stopped_leaves_nothing_that_is_used(tmp_path):
    """Killed in the middle, and started again beside what that left."""
    folder = write_images(tmp_path / "set", 400, size=(8, 8))
    code = (
        "import sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import preprocessing.decode as decoding\n"
        "decode = decoding._decode\n"
        "def slowly(open_one, size, channels, name):\n"
        "    if name == '0200.png' and channels:\n"
        "        print('half way', flush=True); time.sleep(60)\n"
        "    return decode(open_one, size, channels, name)\n"
        "decoding._decode = slowly\n"
        "decoding.FILES_PER_PROCESS = 1000\n"
        "import dataset\n"
        f"dataset.load({str(folder)!r}, (8, 8))\n"
    )
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"half way\n"
        process.kill()
    (left,) = caches()
    assert left.endswith(".building")
    assert len(load(str(folder), (8, 8))) == 400
    assert len(caches()) == 2

    old = time.time() - cache.ABANDONED - 9
    for path in (*Path("cache", left).iterdir(), Path("cache", left)):
        os.utime(path, (old, old))
    load(str(folder), (16, 16))
    assert left not in caches() and len(caches()) == 2


def test_two_runs_that_build_the_same_end_with_one(images, monkeypatch):
    """The other run finishes while this one decodes."""
    decode_all, other = cache.decode_all, []

    def slowly(found, size, channels):
        if channels and not other:
            other.append(None)
            other.append(opened(images).images)
        yield from decode_all(found, size, channels)

    monkeypatch.setattr(cache, "decode_all", slowly)
    images = opened(images).images
    assert np.array_equal(images, other[1]) and len(caches()) == 1


def test_a_full_disk_is_said_before_and_during_the_build(images, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        with pytest.raises(DataError, match=r"--cache_dir cache: .*GB are needed"):
            opened(images)
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes that a file may have
    try:
        with pytest.raises(DataError, match=r"--cache_dir cache: .*File too large"):
            opened(images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caches() == []


def test_a_folder_that_cannot_be_written_is_a_mistake_of_the_user(images):
    Path("file").write_text("not a folder")
    with pytest.raises(DataError, match="--cache_dir file"):
        opened(images, cache_dir="file")


@pytest.mark.parametrize("broken", ["about.json", "pixels"])
def test_a_cache_that_lost_a_part_is_made_again_and_cleared(images, broken):
    expected = np.array(opened(images).images)
    (folder,) = Path("cache").iterdir()
    part = folder / broken
    for harm in (part.unlink, lambda: part.write_bytes(part.read_bytes()[:-1])):
        harm()
        assert np.array_equal(opened(images).images, expected) and len(caches()) == 1
    part.unlink()
    clear("cache")
    assert caches() == []


def test_what_could_not_be_read_for_a_moment_is_read_at_the_next_start(images):
    """But not again by the other processes of the same run."""
    found = find(str(images))
    (images / "0003.png").rename(images / "away")
    first = open_cached(found, (8, 8), None, "cache", "set")
    assert len(first.images) == 19 and first.skipped[0][0] == "0003.png"
    (images / "away").rename(images / "0003.png")
    assert len(open_cached(found, (8, 8), None, "cache", "set", retry=False).images) == 19
    assert len(open_cached(found, (8, 8), None, "cache", "set").images) == 20
    assert len(caches()) == 1 and len(first.images) == 19


def test_clear_removes_caches_and_nothing_else(images):
    opened(images)
    Path("cache", "mine").mkdir()
    Path("cache", "mine", "about.json").write_text("{}")
    Path("cache", "notes.txt").write_text("mine too")
    with pytest.raises(DataError, match="missing"):
        load("missing", clear_cache=True)
    assert len(caches()) == 3
    assert len(load(str(images), clear_cache=True)) == 20
    assert len(caches()) == 3
    clear("cache")
    clear("missing")
    assert caches() == ["mine", "notes.txt"]
