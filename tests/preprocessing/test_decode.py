"""Images of every kind and layout are found, and become the right pixels."""

import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import write_images, write_mnist
from PIL import Image

from dataset import load
from preprocessing.cache import open_cached
from preprocessing.sources import DataError, find

ROOT = Path(__file__).parents[2]


# Layouts -----------------------------------------------------------------------------------------


def test_flat_nested_and_class_folders_in_order_whatever_the_suffix_case(tmp_path):
    folder = write_images(tmp_path / "set", 2, suffix=".JPG")
    write_images(folder / "b" / "deep", 1, suffix=".PnG", first=2)
    write_images(folder / "a", 1, suffix=".jpeg", first=3)
    (folder / "notes.txt").write_text("no image")
    write_images(folder / ".hidden", 1)
    names = ["0000.JPG", "0001.JPG", "a/0003.jpeg", "b/deep/0002.PnG"]
    assert [Path(name).as_posix() for name in find(str(folder)).names] == names
    images = load(str(folder))
    assert images.shape == (4, 64, 64, 3) and images.dtype == np.uint8


def test_an_archive_holds_what_its_folder_does(tmp_path):
    folder = write_images(tmp_path / "set" / "inner", 5).parent
    (folder / "__MACOSX").mkdir()
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png"), reverse=True):
            archive.write(path, path.relative_to(folder))
        archive.writestr("__MACOSX/._0000.png", b"not an image")
        archive.writestr("readme.txt", b"hello")
        archive.writestr("__MACOSX\\._0001.png", b"as Windows may write it")
    assert np.array_equal(load(str(tmp_path / "set.zip")), load(str(folder)))


def test_a_linked_circle_is_walked_once(tmp_path):
    folder = write_images(tmp_path / "set", 3)
    try:
        os.symlink(folder, folder / "again", target_is_directory=True)
    except OSError:
        pytest.skip("links are not permitted here")
    assert len(load(str(folder))) == 3


def test_a_link_to_itself_is_skipped_and_named(images, capsys):
    try:
        os.symlink("again.png", images / "again.png")
    except OSError:
        pytest.skip("links are not permitted here")
    assert len(load(str(images))) == 20
    assert "again.png" in capsys.readouterr().err


def test_a_path_that_exists_wins_over_a_name(tmp_path, monkeypatch):
    write_images(tmp_path / "digits", 3)
    monkeypatch.chdir(tmp_path)
    assert load("digits").shape == (3, 64, 64, 3)


def test_digits_are_here_without_a_network():
    images = load("digits")
    assert images.shape == (1797, 16, 16, 1)
    assert images.min() == 0 and images.max() == 255


def test_a_torchvision_set_is_used_from_where_it_lies(tmp_path):
    pixels = write_mnist(tmp_path, 4)
    assert np.array_equal(load("mnist", download_dir=str(tmp_path))[..., 0], pixels)


# Modes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modes", "channels"),
    [
        (["L", "L"], 1),
        (["RGB", "RGB"], 3),
        (["RGBA", "RGBA"], 4),
        (["L", "RGB"], 3),
        (["RGBA", "RGB"], 3),
        (["RGBA", "L"], 3),
        (["L", "LA"], 1),
        (["LA", "RGBA"], 4),
    ],
)
def test_channels_are_found_from_the_data(tmp_path, modes, channels):
    for i, mode in enumerate(modes):
        write_images(tmp_path, 1, mode=mode, first=i)
    assert load(str(tmp_path)).shape[3] == channels
    for wanted in (1, 3, 4):
        assert load(str(tmp_path), channels=wanted).shape[3] == wanted


def one(tmp_path, image, **options):
    """Save one image, and give what the network sees of it at its own size, (H, W, C)."""
    path = tmp_path / options.pop("name", "a.png")
    image.save(path, **options)
    return load(str(tmp_path), image_size=image.size[::-1])[0]


def test_a_image_of_the_right_size_is_kept_to_the_bit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
    assert np.array_equal(one(tmp_path, Image.fromarray(pixels)), pixels)


def test_16_bit_grey_keeps_its_contrast(tmp_path):
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    seen = one(tmp_path, Image.fromarray(levels))
    assert np.array_equal(seen[..., 0], np.arange(256).reshape(16, 16))


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 200, 100, 50, 7, 7, 7])
    assert one(tmp_path, image)[0, 0].tolist() == [200, 100, 50]
    assert one(tmp_path, image, transparency=1)[0, 0].tolist() == [200, 100, 50, 0]


def test_a_grey_palette_is_grey(tmp_path):
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 90, 90, 90])
    assert one(tmp_path, image)[0, 0].tolist() == [90]


def test_cmyk_and_one_bit(tmp_path):
    assert one(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), name="a.tif")[
        0, 0
    ].tolist() == [255, 0, 0]
    (tmp_path / "a.tif").unlink()
    assert one(tmp_path, Image.new("1", (16, 16), 1))[0, 0].tolist() == [255]


def test_alpha_goes_over_white_beside_images_without(tmp_path):
    Image.new("RGBA", (16, 16), (200, 0, 0, 0)).save(tmp_path / "a.png")
    Image.new("RGB", (16, 16), (1, 2, 3)).save(tmp_path / "b.png")
    clear, solid = load(str(tmp_path), (16, 16))
    assert clear[0, 0].tolist() == [255, 255, 255] and solid[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_are_applied(tmp_path, orientation):
    """Tag 274 says how to turn the stored pixels; a bright corner shows where they went."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    size = (16, 32) if orientation <= 4 else (32, 16)
    seen = load(str(tmp_path), size)[0, ..., 0] > 128
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0)}
    corner |= {5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert seen[corner[orientation]] and seen.sum() == 64


def test_the_shorter_side_is_resized_and_the_centre_cut_out(tmp_path):
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8))
    wide.save(tmp_path / "a.png")
    wide.transpose(Image.Transpose.TRANSPOSE).save(tmp_path / "b.png")
    expected = np.asarray(wide.resize((40, 20), Image.Resampling.BICUBIC))[:, 10:30].astype(int)
    first, second = load(str(tmp_path), (20, 20))
    assert abs(first - expected).max() <= 1
    assert abs(second.transpose(1, 0, 2) - expected).max() <= 1


def test_resizing_is_antialiased(tmp_path):
    """A checkerboard of single pixels shrinks to even grey, not to black or white."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    seen = one(tmp_path, Image.fromarray(board.astype(np.uint8)))
    assert set(np.unique(seen)) == {0, 255}
    small = load(str(tmp_path), (8, 8))
    assert abs(small.astype(int) - 128).max() <= 2


def test_a_large_jpeg_is_as_good_as_its_full_decoding(tmp_path):
    """The shortcut in the decoder must not show."""
    x, y = np.meshgrid(np.linspace(0, 9, 900), np.linspace(0, 7, 700))
    pixels = ((np.sin(x) * np.cos(y) + 1) * 127).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    full = Image.fromarray(pixels[:, 100:800]).resize((64, 64), Image.Resampling.BICUBIC)
    assert abs(load(str(tmp_path))[0, ..., 0].astype(int) - np.asarray(full)).max() <= 3


# What can't be read ------------------------------------------------------------------------------


def test_unreadable_files_are_skipped_and_named(images, capsys):
    whole = (images / "0003.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "empty.jpg").write_bytes(b"")
    (images / "text.jpg").write_text("no image")
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(images / "float.tif")
    Image.fromarray(np.full((9, 9), 200, np.int32)).save(images / "int.tif")
    assert len(load(str(images))) == 20
    said = capsys.readouterr().err
    assert "5 of 25" in said and len(said.splitlines()) == 1
    assert all(
        name in said for name in ("cut.png", "empty.jpg", "text.jpg", "float.tif", "int.tif")
    )


def test_what_is_named_like_a_image_but_is_no_file_is_left_alone(images):
    (images / "folder.png").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(images / "pipe.png")
    assert len(load(str(images))) == 20


def test_a_decompression_bomb_is_skipped(images):
    Image.new("1", (20_000, 10_000)).save(images / "bomb.png")
    skipped = open_cached(find(str(images)), (8, 8), None, "cache", "bomb").skipped
    assert [name for name, _ in skipped] == ["bomb.png"] and "pixels" in skipped[0][1]


def test_more_than_half_unreadable_is_an_error(tmp_path):
    write_images(tmp_path, 2)
    for i in range(2):
        (tmp_path / f"bad{i}.png").write_bytes(b"")
    assert len(load(str(tmp_path))) == 2
    (tmp_path / "bad2.png").write_bytes(b"")
    with pytest.raises(DataError, match="3 of 5"):
        load(str(tmp_path))


def test_data_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load(str(tmp_path / "missing"))
    with pytest.raises(DataError, match="no images"):
        load(str(tmp_path))
    (tmp_path / "a.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"a\.zip"):
        load(str(tmp_path / "a.zip"))


def test_reading_is_quiet_about_odd_but_readable_images(tmp_path):
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])
    image.save(tmp_path / "a.png", transparency=b"\x00\x80")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(str(tmp_path)).shape[3] == 4


# Processes ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_worker_processes_survive_the_spawn_start_method(tmp_path):
    folder = write_images(tmp_path / "set", 600, size=(8, 8))
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import preprocessing.decode as decoding, dataset\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    decoding.os.cpu_count = lambda: 2\n"
        f"    print(dataset.load({str(folder)!r}, (8, 8)).sum())\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    expected = sum(int(np.asarray(Image.open(path)).sum()) for path in folder.iterdir())
    assert int(done.stdout) == expected
