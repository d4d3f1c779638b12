"""Networks as small checkpoints and ONNX graphs. State dicts: test_foreign_files.py."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import write_generator
from strangers import Example, at_random

from dataset import to_image
from generate import Request, generate_images
from models import Discriminator, Generator, generate, sample_latents
from serialization.checkpoint import CheckpointError
from serialization.export import export_onnx
from train import Config, train
from utils import SettingsError


def own(path):
    return write_generator(path, 3, "uniform")


def stranger(path):
    torch.save({"netG": at_random(Example(12, (16, 8, 6))).state_dict()}, path)
    return str(path)


@pytest.mark.parametrize("write", [own, stranger])
def test_onnxruntime_draws_the_generators_images_for_any_batch_size(write, capsys):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = write(Path("a.pth"))
    output = generate_images(Request(load_path=path, export_onnx="new/a.onnx"))
    assert "onnxruntime draws the same" in capsys.readouterr().out
    assert not Path("samples").exists() and list(output.parent.iterdir()) == [output]

    generator = Generator.from_checkpoint(path)
    session = onnxruntime.InferenceSession(output)
    assert [one.name for one in session.get_inputs()] == ["z"]
    for count in (1, 3, 64):
        z = sample_latents(range(100, 100 + count), generator.z_dim, generator.z_dist)
        [images] = session.run(["images"], {"z": z.numpy()})
        with torch.no_grad():
            expected = generator(z)
        assert images.shape == (count, generator.channels, *generator.image_size)
        assert expected.std() > 0.05 and abs(images - expected.numpy()).max() < 1e-4


class Mixed(Generator):
    """A network whose images depend on those that are drawn with them."""

    def forward(self, z):
        return super().forward(z - z.mean(0))


def test_a_graph_that_draws_other_images_is_not_written():
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    with pytest.raises(RuntimeError, match="other images"):
        export_onnx(at_random(Mixed(8, 16, 1, 16)), Path("a.onnx"), Path("a.pth"))
    assert not Path("a.onnx").exists()


def test_without_onnxruntime_it_is_written_unchecked(monkeypatch, capsys):
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    assert generate_images(Request(load_path=own(Path("a.pth")), export_onnx="a.onnx")).exists()
    assert "not checked" in capsys.readouterr().out


def test_without_onnxscript_it_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    path = own(Path("a.pth"))
    with pytest.raises(SettingsError, match="pip install onnxscript onnxruntime"):
        generate_images(Request(load_path=path, export_onnx="new/a.onnx"))
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"export_onnx": "a.pt"}, "must be a .onnx file"),
        ({"export_onnx": "folder.onnx"}, "must be a .onnx file"),
        ({"export_onnx": "own.onnx"}, "is the checkpoint itself"),
        ({"export_onnx": "own.onnx/a.onnx"}, "own.onnx can't be written"),
        ({"export_onnx": "a.onnx", "export_state_dict": "a.pth"}, "--export_"),
        ({"export_onnx": "a.onnx", "seeds": "3"}, "--seeds"),
        ({"export_onnx": ""}, "--export_onnx"),
    ],
)
def test_mistakes_are_refused_and_nothing_is_written(wrong, says):
    own(Path("own.onnx"))
    Path("folder.onnx").mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}
    with pytest.raises(SettingsError, match=says):
        generate_images(Request(load_path="own.onnx", **wrong))
    with pytest.raises(CheckpointError):
        generate_images(Request(load_path="missing.pth", export_onnx="a.onnx"))
    assert {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")} == before


def test_a_small_checkpoint_draws_and_discriminates_as_the_large_one(small):
    last = train(Config(**small))
    output = generate_images(Request(load_path=str(last), export_checkpoint="new/cats.pth"))
    beside = output.with_name("cats_discriminator.pth")
    assert sorted(output.parent.iterdir()) == [output, beside]
    kept = torch.load(output, weights_only=True)
    assert kept.keys() == {"format", "config", "epoch", "step", "generator"}

    z = sample_latents(range(8), 8)
    images = [to_image(generate(Generator.from_checkpoint(path), z)) for path in (last, output)]
    assert abs(images[0].astype(int) - images[1]).max() <= 1
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    logits = [Discriminator.from_checkpoint(path)(x) for path in (last, beside, output)]
    assert torch.allclose(*logits[:2], atol=1e-2) and torch.equal(*logits[1:])
    with pytest.raises(CheckpointError, match="holds no generator"):
        Generator.from_checkpoint(beside)
    beside.unlink()
    with pytest.raises(CheckpointError, match="holds no discriminator"):
        generate_images(Request(load_path=str(output), export_checkpoint="again.pth"))
    assert not Path("again.pth").exists()
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        train(Config(resume=str(output), name="further", epochs=3))


def test_a_small_checkpoint_of_a_strangers_network_is_refused():
    path = stranger(Path("a.pth"))
    with pytest.raises(CheckpointError, match=r"no checkpoint of train\.py"):
        generate_images(Request(load_path=path, export_checkpoint="b.pth"))
    assert not Path("b.pth").exists()
