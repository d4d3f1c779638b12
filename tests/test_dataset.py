"""Pictures of every kind become the right pixels, and batches follow from their position."""

import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_mnist, write_pictures
from PIL import Image

import dataset
from dataset import (
    DataError,
    batches,
    examine,
    find_alike,
    load,
    make_grid,
    read,
    to_image,
    to_tensor,
)

ROOT = Path(__file__).parent.parent


def test_to_image_inverts_to_tensor_for_every_value():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    x = to_tensor(images)
    assert x.shape == (1, 3, 16, 16) and x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert np.array_equal(to_image(x), images)


def test_to_image_clips_instead_of_wrapping_around():
    assert to_image(torch.tensor([-1.5, 1.5]).view(1, 2, 1, 1)).ravel().tolist() == [0, 255]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_a_grid_shows_the_pixels_as_they_are(channels, mode):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 10, channels), np.uint8)
    grid = make_grid(images)
    assert (grid.mode, grid.size) == (mode, (3 * 12 + 2, 2 * 10 + 2))
    pixels = np.asarray(grid).reshape(*grid.size[::-1], channels)
    assert np.array_equal(pixels[12:20, 14:24], images[4])  # the second row, the second picture


# Layouts -----------------------------------------------------------------------------------------


def test_flat_nested_and_class_folders_in_order_whatever_the_suffix_case(tmp_path):
    folder = write_pictures(tmp_path / "set", 2, suffix=".JPG")
    write_pictures(folder / "b" / "deep", 1, suffix=".PnG", first=2)
    write_pictures(folder / "a", 1, suffix=".jpeg", first=3)
    (folder / "notes.txt").write_text("no picture")
    write_pictures(folder / ".hidden", 1)
    names = ["0000.JPG", "0001.JPG", "a/0003.jpeg", "b/deep/0002.PnG"]
    pictures = read(str(folder))
    assert [Path(name).as_posix() for name in pictures.names] == names
    assert pictures.images.shape == (4, 64, 64, 3) and pictures.images.dtype == np.uint8
    assert not pictures.skipped


def test_an_archive_holds_what_its_folder_does(tmp_path):
    folder = write_pictures(tmp_path / "set" / "inner", 5).parent
    (folder / "__MACOSX").mkdir()
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png"), reverse=True):
            archive.write(path, path.relative_to(folder))
        archive.writestr("__MACOSX/._0000.png", b"not a picture")
        archive.writestr("readme.txt", b"hello")
        archive.writestr("__MACOSX\\._0001.png", b"as Windows may write it")
    assert np.array_equal(load(str(tmp_path / "set.zip")), load(str(folder)))


def test_a_linked_circle_is_walked_once(tmp_path):
    folder = write_pictures(tmp_path / "set", 3)
    try:
        os.symlink(folder, folder / "again", target_is_directory=True)
    except OSError:
        pytest.skip("links are not permitted here")
    assert len(load(str(folder))) == 3


def test_a_path_that_exists_wins_over_a_name(tmp_path, monkeypatch):
    write_pictures(tmp_path / "digits", 3)
    monkeypatch.chdir(tmp_path)
    assert load("digits").shape == (3, 64, 64, 3)


def test_digits_are_here_without_a_network():
    images = load("digits")
    assert images.shape == (1797, 32, 32, 1)
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
        write_pictures(tmp_path, 1, mode=mode, first=i)
    assert load(str(tmp_path)).shape[3] == channels
    for wanted in (1, 3, 4):
        assert load(str(tmp_path), channels=wanted).shape[3] == wanted


def one(tmp_path, image, **options):
    """Save one picture, and give what the network sees of it at its own size, (H, W, C)."""
    path = tmp_path / options.pop("name", "a.png")
    image.save(path, **options)
    return load(str(tmp_path), image_size=image.size[::-1])[0]


def test_a_picture_of_the_right_size_is_kept_to_the_bit(tmp_path):
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


def test_alpha_goes_over_white_beside_pictures_without(tmp_path):
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


def test_unreadable_files_are_skipped_and_named(pictures, capsys):
    whole = (pictures / "0003.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "empty.jpg").write_bytes(b"")
    (pictures / "text.jpg").write_text("no picture")
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(pictures / "float.tif")
    Image.fromarray(np.full((9, 9), 200, np.int32)).save(pictures / "int.tif")
    assert len(load(str(pictures))) == 20
    said = capsys.readouterr().err
    assert "5 of 25" in said and len(said.splitlines()) == 1
    assert all(
        name in said for name in ("cut.png", "empty.jpg", "text.jpg", "float.tif", "int.tif")
    )


def test_what_is_named_like_a_picture_but_is_no_file_is_left_alone(pictures):
    (pictures / "folder.png").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(pictures / "pipe.png")
    assert len(load(str(pictures))) == 20


def test_a_decompression_bomb_is_skipped(pictures):
    Image.new("1", (20_000, 10_000)).save(pictures / "bomb.png")
    skipped = read(str(pictures)).skipped
    assert [name for name, _ in skipped] == ["bomb.png"] and "pixels" in skipped[0][1]


def test_more_than_half_unreadable_is_an_error(tmp_path):
    write_pictures(tmp_path, 2)
    for i in range(2):
        (tmp_path / f"bad{i}.png").write_bytes(b"")
    assert len(load(str(tmp_path))) == 2
    (tmp_path / "bad2.png").write_bytes(b"")
    with pytest.raises(DataError, match="3 of 5"):
        load(str(tmp_path))


def test_data_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load(str(tmp_path / "missing"))
    with pytest.raises(DataError, match="no pictures"):
        load(str(tmp_path))
    (tmp_path / "a.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"a\.zip"):
        load(str(tmp_path / "a.zip"))


# Positions ---------------------------------------------------------------------------------------


def test_an_epoch_shows_every_picture_once_and_drops_the_incomplete_batch():
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    stream = batches(images, 3, seed=0)
    epochs = [[next(stream).flatten().tolist() for _ in range(3)] for _ in range(2)]
    for epoch in epochs:
        assert len({value for batch in epoch for value in batch}) == 9
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("mirror", [False, True])
def test_batches_follow_from_seed_and_position(mirror):
    images = np.random.default_rng(0).integers(0, 256, (10, 2, 2, 3), np.uint8)
    kept = images.copy()
    stream = batches(images, 4, seed=7, mirror=mirror)
    unbroken = [next(stream) for _ in range(6)]
    for first in range(6):
        assert torch.equal(next(batches(images, 4, 7, first, mirror)), unbroken[first])
    assert not torch.equal(next(batches(images, 4, 8, 0, mirror)), unbroken[0])
    assert np.array_equal(images, kept)  # the flips were made in a copy


def test_mirror_flips_about_half_of_the_pictures():
    images = np.zeros((400, 1, 2, 1), np.uint8)
    images[:, :, 1] = 1
    batch = next(batches(images, 400, seed=0, mirror=True))
    assert 150 < batch[:, 0, 0].sum() < 250
    assert (batch.sum(dim=(1, 2, 3)) == 1).all()


# Processes and the doctor ------------------------------------------------------------------------


def test_worker_processes_survive_the_spawn_start_method(tmp_path):
    folder = write_pictures(tmp_path / "set", 600, size=(8, 8))
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import pictures, dataset\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    pictures.os.cpu_count = lambda: 2\n"
        f"    print(dataset.load({str(folder)!r}, (8, 8)).sum())\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    expected = sum(int(np.asarray(Image.open(path)).sum()) for path in folder.iterdir())
    assert int(done.stdout) == expected


def test_copies_and_mirror_images_are_found_even_saved_again():
    random = np.random.default_rng(0)
    smooth = [
        Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).resize((32, 32))
        for _ in range(5)
    ]
    images = np.stack([np.asarray(image) for image in smooth])
    noise = random.integers(-3, 4, images[0].shape)
    again = np.clip(images[1].astype(int) + noise, 0, 255).astype(np.uint8)
    turned = np.clip(images[2, :, ::-1].astype(int) + noise, 0, 255).astype(np.uint8)
    images = np.concatenate([images, [again, turned, images[0]]])
    assert find_alike(images) == [(1, 5), (0, 7)]
    assert find_alike(images, mirror=True) == [(2, 6)]
    assert find_alike(np.zeros((5000, 9, 8, 1), np.uint8))[-1] == (0, 4999)


def test_the_doctor_reports_and_writes_a_contact_sheet(pictures, tmp_path):
    (pictures / "zz.png").write_bytes((pictures / "0002.png").read_bytes())
    (pictures / "bad.png").write_bytes(b"")
    Image.new("L", (30, 30), 9).save(pictures / "grey.png")
    sheet = tmp_path / "sheet.png"
    command = [sys.executable, ROOT / "dataset.py", pictures, "--output", sheet]
    command += ["--image_size", "16"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for words in ("pictures: 22", "3 channels", "24x20 (21)", "30x30 (1)", "RGB (21)", "L (1)",
                  "bad.png: not a picture", "5 levels: 1\n    zz.png of 0002.png"):  # fmt: skip
        assert words in said
    assert Image.open(sheet).size == (5 * 18 + 2, 5 * 18 + 2)


def test_the_doctor_reports_where_training_would_refuse(tmp_path):
    for i in range(3):
        (tmp_path / f"bad\n{i}.png").write_bytes(b"")
    assert examine(read(str(tmp_path)), tmp_path / "sheet.png").splitlines() == [
        "pictures: 0",
        "can't be read: 3",
        *(f"    'bad\\n{i}.png': not a picture, or a broken one" for i in range(3)),
    ]


def test_random_numbers_differ_between_purposes_and_positions():
    draws = {
        float(dataset.random_at(seed, purpose, position).random())
        for seed in (0, 1)
        for purpose in ("order", "mirror")
        for position in (0, 1)
    }
    assert len(draws) == 8


def test_reading_is_quiet_about_odd_but_readable_pictures(tmp_path):
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])
    image.save(tmp_path / "a.png", transparency=b"\x00\x80")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(str(tmp_path)).shape[3] == 4
