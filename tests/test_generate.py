"""Pictures from a checkpoint: each by its seed alone, as a grid or as files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import checkpoint
from checkpoint import CheckpointError
from generate import Request, draw_images, generate
from models import Generator
from train import Config, train
from utils import SettingsError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a grey 12x16 generator, as training writes it, with weights that vary."""
    torch.manual_seed(0)
    generator = Generator(8, 16, 1, (12, 16))
    generator.apply(
        lambda m: torch.nn.init.normal_(m.weight, 0, 0.2) if hasattr(m, "weight") else m
    )
    config = {
        "z_dim": 8, "features": 16, "channels": 1, "image_size": "12x16", "max_features": 1024,
        "norm": "batch", "activation": "relu", "z_dist": "normal",
    }  # fmt: skip
    path = tmp_path_factory.mktemp("saved") / "a.pth"
    checkpoint.save(path, {"config": config, "generator": generator.state_dict()})
    return str(path)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_grid_has_the_pictures_of_its_seeds(saved, tmp_path):
    output = generate(
        Request(load_path=saved, num_output=5, output=str(tmp_path / "new" / "a.png"))
    )
    grid = np.asarray(Image.open(output))
    assert grid.shape == (2 * 14 + 2, 3 * 18 + 2)
    drawn = list(draw_images(Generator.from_checkpoint(saved), range(5)))
    assert np.array_equal(grid[16:28, 20:36], drawn[4][..., 0])
    assert drawn[4].std() > 10 and not np.array_equal(drawn[3], drawn[4])


def test_a_picture_depends_on_its_seed_alone_byte_for_byte(saved, tmp_path):
    def separate(name, **request):
        request |= {"load_path": saved, "separate": True, "output": str(tmp_path / name)}
        return files(generate(Request(**request)))

    many = separate("many", num_output=130)
    assert sorted(many) == [f"seed_{seed:06d}.png" for seed in range(130)]
    assert separate("one", seed=129, num_output=1) == {"seed_000129.png": many["seed_000129.png"]}
    some = separate("some", seeds="64, 3-5,129")
    assert some == {
        f"seed_{seed:06d}.png": many[f"seed_{seed:06d}.png"] for seed in (3, 4, 5, 64, 129)
    }


def test_the_default_is_64_pictures_in_samples(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert generate(Request(load_path=saved)).as_posix() == "samples/generated.png"
    assert Image.open("samples/generated.png").size == (8 * 18 + 2, 8 * 14 + 2)


def test_a_folder_takes_more_pictures_but_none_beside_other_files(saved, tmp_path):
    request = Request(load_path=saved, num_output=2, separate=True, output=str(tmp_path / "out"))
    first = files(generate(request))
    assert files(generate(request)) == first
    assert len(files(generate(replace(request, seed=100)))) == 4
    (tmp_path / "out" / "cat.png").write_bytes(b"")
    with pytest.raises(SettingsError, match=r"cat\.png"):
        generate(request)


@pytest.mark.parametrize(
    "wrong",
    [{"seeds": "5-3"}, {"seeds": "a"}, {"seeds": ""}, {"seeds": "1", "seed": 2}, {"num_output": 0},
     {"seeds": "1", "num_output": 2}, {"num_output": 10**20}, {"output": "a.jpg"}],
)  # fmt: skip
def test_mistakes_are_refused_before_anything_is_written(saved, tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError):
        generate(Request(load_path=saved, **wrong))
    with pytest.raises(CheckpointError):
        generate(Request(load_path="missing.pth"))
    assert not list(tmp_path.iterdir())


def test_generate_draws_the_grid_that_training_drew(small, tmp_path):
    last = train(Config(**small))
    output = generate(Request(load_path=str(last), output=str(tmp_path / "a.png"), device="cpu"))
    during = Image.open(tmp_path / "samples" / "pictures" / "step_0000010.png")
    assert np.array_equal(np.asarray(Image.open(output)), np.asarray(during))


def test_transparent_pictures_keep_their_alpha(small, tmp_path):
    from conftest import write_pictures

    small["data"] = str(write_pictures(tmp_path / "clear", 8, mode="RGBA"))
    last = train(Config(**small, z_dist="uniform", steps=1))
    folder = generate(
        Request(load_path=str(last), separate=True, num_output=1, output=str(tmp_path / "o"))
    )
    assert Image.open(folder / "seed_000000.png").mode == "RGBA"
