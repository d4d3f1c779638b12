"""The commands of explore.py: their layouts, and that each image can be made again."""

import shlex
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import write_generator
from PIL import Image, ImageSequence
from strangers import Example, Nested, Numbered, Projected, at_random, plain_critic

from dataset import to_image
from explore import COMMANDS, Arithmetic, Pick, Turn, Walk
from models import Generator, generate, sample_latents
from utils import SettingsError, parse_settings

CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
WORDS = {
    "pick": "--seeds 0-4",
    "walk": "--seeds 3,7,9 --loop --frames 4",
    "arithmetic": '"3,17-18 - 4 + 5,6"',
    "turn": "--from 3,17 --to 4 --seeds 50-52 --steps 5 --scale 2",
    "features": "--seeds 0-9 --filters 2 --shown 3",
    "dropout": '--boxes "3:2,2,9,8; 5-6:0,0,4,4; 3:9,9,12,12" --seeds 7 --scale 2',
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return {
        channels: write_generator(folder / f"{channels}.pth", channels) for channels in (1, 3, 4)
    }


def run(*words):
    return parse_settings(COMMANDS, None, words).run()


def images_of(path, *seeds):
    generator = Generator.from_checkpoint(path)
    return to_image(generate(generator, sample_latents(seeds, generator.z_dim)))


def about(path):
    """Return the command that a file holds."""
    with Image.open(path) as image:
        if image.format == "PNG":
            return image.text["command"]
        return image.getexif()[270] if image.format == "WEBP" else image.info["comment"].decode()


def holds(sheet, image):
    """Tell where an image (H, W, C) stands in a sheet, as (top, left), or give None."""
    pixels = np.atleast_3d(np.asarray(sheet))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width = image.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (height, width), (0, 1))
    found = np.argwhere((windows == np.moveaxis(image, 2, 0)).all((2, 3, 4)))
    return tuple(map(int, found[0])) if len(found) else None


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("command", WORDS)
def test_a_sheet_is_made_again_from_its_own_text_byte_for_byte(saved, command, channels):
    first = run(
        command, *shlex.split(WORDS[command]), "--load_path", saved[channels], "--output", "a/b.png"
    )
    assert Image.open(first).mode == CHANNELS[channels] and first == Path("a/b.png")
    python, script, *words = shlex.split(about(first))
    assert (python, script) == ("python", "explore.py")
    assert run(*words, "--output", "c.png").read_bytes() == first.read_bytes()


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".mp4"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_an_animation_plays_and_is_made_again(saved, channels, suffix):
    words = ["walk", "--load_path", saved[channels], "--seeds", "3,7", "--frames", "6"]
    first = run(*words, "--output", f"a{suffix}")
    assert run(*words, "--output", f"b{suffix}").read_bytes() == first.read_bytes()
    if suffix == ".mp4":
        video = cv2.VideoCapture(str(first))
        frames = [video.read()[1][..., ::-1] for _ in range(7)]
        assert not video.read()[0] and video.get(cv2.CAP_PROP_FPS) == 25
    else:
        words = [*shlex.split(about(first))[2:], "--output", f"c{suffix}"]
        assert run(*words).read_bytes() == first.read_bytes()
        with Image.open(first) as image:
            frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
            assert (len(frames), image.info["duration"], image.info["loop"]) == (7, 40, 0)
    start, end = images_of(saved[channels], 3, 7)
    for frame, image in ((frames[0], start), (frames[-1], end)):
        seen = np.asarray(Image.fromarray(image.squeeze()).convert("RGBA"), float)
        seen = seen[..., :3] * seen[..., 3:] / 255 + 255 - seen[..., 3:]  # over white
        grey, expected = frame.mean(2), seen.mean(2)
        assert frame.shape == (12, 16, 3)
        assert np.abs(grey - expected).mean() < 0.6 * np.abs(grey - expected.mean()).mean()


def test_an_mp4_of_an_odd_size_keeps_its_last_row_and_column(tmp_path):
    from visualization.animation import write_animation

    ramp = np.broadcast_to(np.arange(0, 150, 10, np.uint8)[:, None, None], (15, 17, 3))
    write_animation(tmp_path / "a.mp4", [Image.fromarray(ramp)] * 3, [40, 40, 200])
    video = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    frames = [video.read()[1] for _ in range(7)]
    assert frames[0].shape == (16, 18, 3) and not video.read()[0]
    assert np.abs(frames[0][:15, :17].astype(int) - ramp).max() < 12


def test_pick_has_each_seed_where_it_is_looked_for(saved):
    sheet = Image.open(Pick(load_path=saved[3], seeds="2,7,5,9,1").run())
    images = images_of(saved[3], 2, 7, 5, 9, 1)
    places = [holds(sheet, image) for image in images]
    rows, columns = zip(*places, strict=True)
    assert rows[0] == rows[1] == rows[2] < rows[3] == rows[4]
    assert columns[0] == columns[3] < columns[1] == columns[4] < columns[2]
    beneath = np.asarray(sheet)[rows[0] + 12 : rows[0] + 27]  # the numbers
    assert (beneath < 128).any()


def test_a_file_of_latents_stands_for_a_seed(saved):
    np.save("photo.npy", sample_latents([5], 8).numpy())
    sheet = Image.open(Pick(load_path=saved[1], seeds="photo.npy", scale=3).run())
    assert holds(sheet, images_of(saved[1], 5)[0].repeat(3, 0).repeat(3, 1))
    mixed = Arithmetic(load_path=saved[1], expression="photo.npy - 3", output="a.png").run()
    plain = Arithmetic(load_path=saved[1], expression="5 - 3", output="b.png").run()
    image = images_of(saved[1], 5)[0]
    assert holds(Image.open(mixed), image) and holds(Image.open(plain), image)
    words = ["--load_path", saved[1], "--output", "c.png"]
    assert holds(Image.open(run("arithmetic", "-photo.npy + 3", *words)), image)


def test_a_strip_has_a_row_for_each_leg_with_its_latents_at_both_ends(saved):
    walk = Walk(load_path=saved[1], seeds="3,7,9", frames=4, loop=True, output="a.png")
    sheet = np.asarray(Image.open(walk.run()))
    three, seven, nine = images_of(saved[1], 3, 7, 9)[..., 0]
    legs = ((three, seven), (seven, nine), (nine, three))
    tops = range(2, sheet.shape[0], 12 + 15 + 2)
    assert len(tops) == 3
    for top, (start, end) in zip(tops, legs, strict=True):
        row = sheet[top : top + 12]
        assert np.array_equal(row[:, 2:18], start) and np.array_equal(row[:, -18:-2], end)


def test_arithmetic_has_the_exemplars_and_the_result_beside_their_means(saved):
    path = Arithmetic(load_path=saved[1], expression="3,17,22 - 4,9 + 5").run()
    sheet = Image.open(path)
    places = [holds(sheet, image) for image in images_of(saved[1], 3, 17, 22, 4, 9, 5)]
    tops, lefts = zip(*places, strict=True)
    assert tops[2] == tops[4] == tops[5] and tops[1] == tops[3] > tops[0]
    assert lefts[0] == lefts[2] < lefts[3] == lefts[4] < lefts[5]
    z = sample_latents([3, 17, 22, 4, 9, 5], 8)
    result = z[:3].mean(0) - z[3:5].mean(0) + z[5]
    generator = Generator.from_checkpoint(saved[1])
    result = to_image(generate(generator, result[None] * 8**0.5 / result.norm()))[0]
    top, left = holds(sheet, result)
    assert top > tops[2] and left > lefts[5]


def test_a_turn_has_each_latent_in_the_middle_of_its_row(saved):
    path = Turn(load_path=saved[3], from_="3,17", to="4", seeds="50-51", steps=5).run()
    sheet = Image.open(path)
    places = [holds(sheet, image) for image in images_of(saved[3], 50, 51)]
    (top, left), (below, same) = places
    assert left == same and top < below
    moved = [np.asarray(sheet)[top : top + 12, left + i : left + i + 16] for i in (-18, 0, 18)]
    assert all(not np.array_equal(moved[1], other) for other in (moved[0], moved[2]))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("walk --seeds 3", "--seeds 3: a walk takes two"),
        ("walk --output a.jpg", "--output a.jpg: must be"),
        ("walk --frames 0", "--frames 0: must be at least 1"),
        ("walk --path crooked", "--path: invalid choice"),
        ("walk --frames 999999999", "too many for one file"),
        ("pick --output a.webp", "--output a.webp: must be a .png"),
        ("pick --seeds 0-9999 --scale 50", "too many for one file"),
        ("pick --seeds 0-10000", "10,000 latents at most"),
        ("pick --seeds photo.npy", "photo.npy: No such file"),
        ("turn --from a --to 4", "--from a: write it like"),
        ("turn --from 3 --to 4-2", "--to 4-2: write it like"),
        ("turn --from 3 --to 4 --steps 999999999", "too many for one file"),
        ("arithmetic 3-", "expression, a space before each sign: 3-:"),
        ("arithmetic 3+4", "expression, a space before each sign: 3+4:"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(saved, capsys, words, says):
    with pytest.raises((SettingsError, SystemExit)) as refused:
        run(*words.split(), "--load_path", saved[1])
    said = capsys.readouterr().err.strip() or str(refused.value)
    assert says in said and "\n" not in said
    assert not list(Path().iterdir())


def test_another_programs_checkpoint_takes_what_it_leaves_unsaid(tmp_path):
    generator = Generator(8, 8, 1, 16, activation="leaky_relu", norm="none")
    generator.apply(
        lambda m: torch.nn.init.normal_(m.weight, 0, 0.3) if hasattr(m, "weight") else m
    )
    torch.save(generator.state_dict(), tmp_path / "a.pth")
    words = ["pick", "--load_path", str(tmp_path / "a.pth"), "--seeds", "5"]
    said = ["--activation", "leaky_relu", "--image_size", "16x16", "--z_dist", "uniform"]
    image = to_image(generate(generator, sample_latents([5], 8, "uniform")))[0]
    sheet = run(*words, *said)
    assert holds(Image.open(sheet), image)
    assert (
        run(*shlex.split(about(sheet))[2:], "--output", "b.png").read_bytes() == sheet.read_bytes()
    )
    assert not holds(Image.open(run(*words, "--output", "c.png")), image)


@pytest.mark.parametrize("stranger", [Example, Numbered, Nested, Projected])
@pytest.mark.parametrize("command", [*WORDS, "pick --move 1:2,2:-3", "invert photo.png --steps 3"])
def test_every_command_knows_other_programs_networks(stranger, command):
    generator = Example(12, (16, 8, 6)) if stranger is Example else stranger()
    networks = {
        "netG": at_random(generator),
        "netD": at_random(torch.nn.Sequential(*plain_critic())),
    }
    torch.save({name: one.state_dict() for name, one in networks.items()}, "a.pth")
    Image.new("RGB", (40, 30), "red").save("photo.png")
    words = [*shlex.split(command), *shlex.split(WORDS.get(command, ""))]
    sheet = run(*words, "--load_path", "a.pth", "--activation", "relu", "--output", "sheet.png")
    assert np.asarray(Image.open(sheet)).std() > 10


def test_serve_without_gradio_says_what_to_install(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "page", raising=False)
    with pytest.raises(SettingsError, match="serve needs gradio: pip install"):
        run("serve", "--load_path", saved[1])
