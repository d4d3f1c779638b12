"""Images from a checkpoint: each by its seed alone, as a grid or as files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_generator, write_images
from PIL import Image

from generate import Request, generate_batches, generate_images, write_files
from models import Generator
from serialization.checkpoint import CheckpointError
from train import Config, train
from utils import SettingsError, run_script


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a grey 12x16 generator, as training writes it, with weights that vary."""
    return write_generator(tmp_path_factory.mktemp("saved") / "a.pth")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def draw_all(path, seeds):
    batches = generate_batches(Generator.from_checkpoint(path), seeds)
    return np.concatenate([images for _, images in batches])


def test_a_grid_has_the_images_of_its_seeds(saved, tmp_path):
    output = generate_images(
        Request(load_path=saved, num_output=5, output=str(tmp_path / "new" / "a.png"), device="cpu")
    )
    grid = np.asarray(Image.open(output))
    assert grid.shape == (2 * 14 + 2, 3 * 18 + 2)
    drawn = draw_all(saved, range(5))
    assert np.array_equal(grid[16:28, 20:36], drawn[4][..., 0])
    assert drawn[4].std() > 10 and not np.array_equal(drawn[3], drawn[4])


def test_a_image_depends_on_its_seed_alone_byte_for_byte(saved, tmp_path):
    def separate(name, **request):
        request |= {"load_path": saved, "separate": True, "output": str(tmp_path / name)}
        return files(generate_images(Request(**request)))

    many = separate("many", num_output=130)
    assert sorted(many) == [f"seed_{seed:06d}.png" for seed in range(130)]
    assert separate("one", seed=129, num_output=1) == {"seed_000129.png": many["seed_000129.png"]}
    some = separate("some", seeds="64, 3-5,129")
    assert some == {
        f"seed_{seed:06d}.png": many[f"seed_{seed:06d}.png"] for seed in (3, 4, 5, 64, 129)
    }


def test_images_of_many_batches_are_all_there_and_right(saved, tmp_path):
    request = Request(
        load_path=saved, num_output=2001, separate=True, output=str(tmp_path / "out"), device="cpu"
    )
    folder = generate_images(request)
    assert len(list(folder.iterdir())) == 2001
    for seed, image in enumerate(draw_all(saved, range(2001))):
        written = np.asarray(Image.open(folder / f"seed_{seed:06d}.png"))
        assert np.array_equal(written, image[..., 0]), seed


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["smooth", "noise", "black"])
def test_a_file_holds_the_pixels_exactly(tmp_path, channels, kind):
    y, x = np.mgrid[:9, :70]
    pixels = {
        "smooth": x + 3 * y,
        "noise": np.random.default_rng(0).integers(0, 256, (channels, 9, 70)),
        "black": 0 * x,
    }[kind]
    image = np.moveaxis(np.broadcast_to(pixels, (channels, 9, 70)), 0, -1).astype(np.uint8)
    assert list(write_files(tmp_path, [([3], image[None])])) == [1]
    opened = Image.open(tmp_path / "seed_000003.png")
    assert opened.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    assert np.array_equal(np.reshape(opened, image.shape), image)


def test_a_file_that_cannot_be_written_is_one_line_with_status_2(saved, tmp_path, capsys):
    folder = tmp_path / "out"
    (folder / "seed_000700.png").mkdir(parents=True)
    request = Request(load_path=saved, num_output=2000, separate=True, output=folder, device="cpu")
    with pytest.raises(SystemExit) as stopped:
        run_script(lambda: generate_images(request))
    said = capsys.readouterr()
    assert stopped.value.code == 2 and not said.out
    assert len(said.err.splitlines()) == 1 and "seed_000700.png" in said.err, said.err
    assert len(list(folder.iterdir())) < 2000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
def test_a_full_disk_is_named_by_its_file_and_leaves_no_broken_image(saved, tmp_path):
    broken = tmp_path / "seed_000003.png"
    broken.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space") as caught:
        generate_images(Request(load_path=saved, num_output=5, separate=True, output=str(tmp_path)))
    assert caught.value.filename == str(broken) and not broken.is_symlink()


def test_the_default_is_64_images_in_samples(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert generate_images(Request(load_path=saved)).as_posix() == "samples/generated.png"
    assert Image.open("samples/generated.png").size == (8 * 18 + 2, 8 * 14 + 2)


def test_a_folder_takes_more_images_but_none_beside_other_files(saved, tmp_path):
    request = Request(load_path=saved, num_output=2, separate=True, output=str(tmp_path / "out"))
    first = files(generate_images(request))
    assert files(generate_images(request)) == first
    assert len(files(generate_images(replace(request, seed=100)))) == 4
    (tmp_path / "out" / "cat.png").write_bytes(b"")
    with pytest.raises(SettingsError, match=r"cat\.png"):
        generate_images(request)


@pytest.mark.parametrize(
    "wrong",
    [{"seeds": "5-3"}, {"seeds": "a"}, {"seeds": ""}, {"seeds": "1", "seed": 2}, {"num_output": 0},
     {"seeds": "1", "num_output": 2}, {"num_output": 10**20}, {"output": "a.jpg"}],
)  # fmt: skip
def test_mistakes_are_refused_before_anything_is_written(saved, tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError):
        generate_images(Request(load_path=saved, **wrong))
    with pytest.raises(CheckpointError):
        generate_images(Request(load_path="missing.pth"))
    assert not list(tmp_path.iterdir())


def test_generate_draws_the_grid_that_training_drew(small, tmp_path):
    last = train(Config(**small))
    output = generate_images(
        Request(load_path=str(last), output=str(tmp_path / "a.png"), device="cpu")
    )
    during = Image.open(tmp_path / "samples" / "images" / "step_0000010.png")
    assert np.array_equal(np.asarray(Image.open(output)), np.asarray(during))


def test_transparent_images_keep_their_alpha(small, tmp_path):
    small["data"] = str(write_images(tmp_path / "clear", 8, mode="RGBA"))
    last = train(Config(**small, z_dist="uniform", steps=1))
    folder = generate_images(
        Request(load_path=str(last), separate=True, num_output=1, output=str(tmp_path / "o"))
    )
    assert Image.open(folder / "seed_000000.png").mode == "RGBA"


def test_a_full_disk_leaves_the_grid_that_was_there(saved):
    resource = pytest.importorskip("resource")
    request = Request(load_path=saved, num_output=4, output="grid.png", device="cpu")
    before = generate_images(request).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            generate_images(replace(request, num_output=64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == "grid.png"
    assert Path("grid.png").read_bytes() == before and len(list(Path().iterdir())) == 1
