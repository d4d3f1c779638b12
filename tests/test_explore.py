"""The commands of explore.py: their figures, and that each can be made again."""

import shlex
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import write_generator, write_images
from PIL import Image, ImageSequence
from strangers import Example, Projected, at_random, plain_critic

from dataset import to_image
from explore import COMMANDS
from models import Generator, generate, sample_latents
from serialization import checkpoint
from utils import SettingsError, parse_settings
from visualization.figures import write_animation
from visualization.inversion import read_photos
from visualization.latents import read_displacement

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
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
    return {channels: write_generator(folder / f"{channels}.pth", channels) for channels in MODES}


def run(path, words, *more):
    words = [*shlex.split(words), "--load_path", path, *more]
    return parse_settings(COMMANDS, None, words).run()


def images_of(path, *seeds):
    generator = Generator.from_checkpoint(path)
    return to_image(generate(generator, sample_latents(seeds, generator.z_dim)))


def find(figure, image):
    """Return where an image (H, W, C) stands in a figure, as (top, left), or None."""
    pixels = np.asarray(Image.open(figure))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, image.shape[:2], (0, 1))
    found = np.argwhere((windows == np.moveaxis(image, 2, 0)).all((2, 3, 4)))
    return tuple(map(int, found[0])) if len(found) else None


@pytest.mark.parametrize(
    ("command", "channels"),
    [*((command, 3) for command in WORDS), ("pick", 1), ("pick", 4), ("features", 4)],
)
def test_a_figure_is_made_again_from_its_own_text_byte_for_byte(saved, command, channels):
    first = run(saved[channels], f"{command} {WORDS[command]} --output a/b.png")
    assert first == Path("a/b.png") and Image.open(first).mode == MODES[channels]
    python, script, *words = shlex.split(Image.open(first).text["command"])
    assert (python, script) == ("python", "explore.py")
    again = parse_settings(COMMANDS, None, [*words, "--output", "c.png"]).run()
    assert again.read_bytes() == first.read_bytes()


def frames_of(path):
    """Return the frames (N, H, W, 3) of an animation, and the milliseconds of each."""
    if path.suffix == ".mp4":
        with av.open(path) as video:
            frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
            stream = video.streams.video[0]
            assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
            return np.stack(frames), [1000 / stream.average_rate] * len(frames)
    with Image.open(path) as image:
        assert image.info["loop"] == 0
        frames, times = [], []
        for frame in ImageSequence.Iterator(image):
            frames.append(np.asarray(frame.convert("RGB")))
            times.append(frame.info["duration"])
        return np.stack(frames), times


@pytest.mark.parametrize("channels", MODES)
@pytest.mark.parametrize("suffix", [".webp", ".gif", ".mp4"])
def test_an_animation_plays_from_the_first_latent_to_the_last(saved, channels, suffix):
    path = run(saved[channels], f"walk --seeds 3,7 --frames 6 --output a{suffix}")
    frames, times = frames_of(path)
    assert frames.shape == (7, 12, 16, 3) and set(times) == {40}
    for frame, image in zip(frames[[0, -1]], images_of(saved[channels], 3, 7), strict=True):
        white = Image.new("RGBA", (16, 12), "white")
        shown = Image.alpha_composite(white, Image.fromarray(image.squeeze()).convert("RGBA"))
        grey, expected = frame.mean(2), np.asarray(shown, float)[..., :3].mean(2)
        assert np.abs(grey - expected).mean() < 0.6 * np.abs(grey - expected.mean()).mean()


def test_an_mp4_of_an_odd_size_keeps_its_last_row_and_column_and_its_times(tmp_path):
    ramp = np.broadcast_to(np.arange(0, 150, 10, np.uint8)[:, None, None], (15, 17, 3))
    write_animation(tmp_path / "a.mp4", [Image.fromarray(ramp)] * 3, [40, 40, 200])
    frames, _ = frames_of(tmp_path / "a.mp4")
    assert frames.shape == (7, 16, 18, 3)
    assert np.abs(frames[0][:15, :17].astype(int) - ramp).max() < 12


def test_pick_has_each_seed_where_it_is_looked_for(saved):
    figure = run(saved[3], "pick --seeds 2,7,5,9,1")
    rows, columns = zip(*(find(figure, i) for i in images_of(saved[3], 2, 7, 5, 9, 1)), strict=True)
    assert rows[0] == rows[1] == rows[2] < rows[3] == rows[4]
    assert columns[0] == columns[3] < columns[1] == columns[4] < columns[2]
    beneath = np.asarray(Image.open(figure))[rows[0] + 12 : rows[0] + 27]  # the numbers
    assert (beneath < 128).any()


def test_pick_moves_latents_at_their_distance(saved):
    figure = run(saved[1], "pick --seeds 5 --move 1:2,2:-3")
    generator, z = Generator.from_checkpoint(saved[1]), sample_latents([5], 8)
    moved = z + read_displacement(generator, "1:2,2:-3")
    assert find(figure, to_image(generate(generator, moved * z.norm() / moved.norm()))[0])
    assert not find(figure, images_of(saved[1], 5)[0])


def test_a_file_of_latents_stands_for_a_seed(saved):
    np.save("photo.npy", sample_latents([5], 8).numpy())
    (image,) = images_of(saved[1], 5)
    figure = run(saved[1], "pick --seeds photo.npy --scale 3")
    assert find(figure, image.repeat(3, 0).repeat(3, 1))
    for expression in ("photo.npy - 3", "-photo.npy + 3"):
        assert find(run(saved[1], f"arithmetic '{expression}'"), image)


def test_a_strip_has_a_row_for_each_leg_with_its_latents_at_both_ends(saved):
    path = run(saved[1], "walk --seeds 3,7,9 --frames 4 --loop --output a.png")
    figure = np.asarray(Image.open(path))
    three, seven, nine = images_of(saved[1], 3, 7, 9)[..., 0]
    tops = range(2, figure.shape[0], 12 + 15 + 2)
    legs = ((three, seven), (seven, nine), (nine, three))
    for top, (start, end) in zip(tops, legs, strict=True):
        row = figure[top : top + 12]
        assert np.array_equal(row[:, 2:18], start) and np.array_equal(row[:, -18:-2], end)


def test_arithmetic_has_the_exemplars_and_the_result_beside_their_means(saved):
    figure = run(saved[1], "arithmetic '3,17,22 - 4,9 + 5'")
    seeds = (3, 17, 22, 4, 9, 5)
    tops, lefts = zip(*(find(figure, image) for image in images_of(saved[1], *seeds)), strict=True)
    assert tops[2] == tops[4] == tops[5] and tops[1] == tops[3] > tops[0]
    assert lefts[0] == lefts[2] < lefts[3] == lefts[4] < lefts[5]
    z = sample_latents(seeds, 8)
    result = z[:3].mean(0) - z[3:5].mean(0) + z[5]
    generator = Generator.from_checkpoint(saved[1])
    result = to_image(generate(generator, result[None] * 8**0.5 / result.norm()))[0]
    top, left = find(figure, result)
    assert top > tops[2] and left > lefts[5]


def test_a_turn_has_each_latent_in_the_middle_of_its_row(saved):
    figure = run(saved[3], "turn --from 3,17 --to 4 --seeds 50-51 --steps 5")
    (top, left), (below, same) = (find(figure, image) for image in images_of(saved[3], 50, 51))
    assert left == same and top < below
    pixels = np.asarray(Image.open(figure))
    before, itself, after = (pixels[top : top + 12, left + i :][:, :16] for i in (-18, 0, 18))
    assert not np.array_equal(before, itself) and not np.array_equal(after, itself)


@pytest.mark.parametrize("channels", [1, 3])
def test_invert_writes_photos_above_their_images_and_latents_that_make_them(
    saved, channels, capsys
):
    photos = sorted(map(str, write_images(Path("photos"), 9).iterdir()))
    words = f"invert {shlex.join(photos)} --steps 3 --starts 2 --output new/photo.png"
    figure = run(saved[channels], words)
    said = capsys.readouterr()
    assert said.out.count("levels") == 9 and "Warning" not in said.err
    z = np.load("new/photo.npy")
    assert z.shape == (9, 8) and z.dtype == np.float32
    generator = Generator.from_checkpoint(saved[channels])
    (photo,) = read_photos(photos[8:], (12, 16), channels)
    (found,) = to_image(generate(generator, torch.from_numpy(z[8:])))
    (top, left), (below, same) = find(figure, photo), find(figure, found)
    assert top > 12 + 15 and below == top + 14 and left == same
    assert find(run(saved[channels], "pick --seeds new/photo.npy"), found)


def test_invert_without_a_discriminator_compares_pixels(tmp_path, capsys):
    path = write_generator(tmp_path / "a.pth", 3)
    contents = checkpoint.load(path)
    del contents["discriminator"]
    checkpoint.save(path, contents)
    (photo,) = write_images(tmp_path / "photos", 1).iterdir()
    run(path, f"invert {photo} --steps 1")
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "pixels alone" in said


def test_features_of_a_data_set(saved):
    folder = write_images(Path("cats"), 3)
    figure = Image.open(run(saved[1], f"features --data {folder} --filters 2 --shown 9"))
    assert figure.mode == "L" and figure.size[1] == 2 + 15 + 2 + 4 * (12 + 2)


def test_a_box_of_a_file_of_latents_marks_all_its_rows(saved, capsys):
    np.save("z.npy", sample_latents([3, 4], 8).numpy())
    said, figures = [], []
    for name in ("z.npy", "3-4"):
        figure = run(saved[3], f"dropout --boxes {name}:0,0,6,4 --scale 4")
        said.append(capsys.readouterr().out)
        figures.append(np.asarray(Image.open(figure))[-50:])  # without the names of the marked
    assert said[0] == said[1] and "dropped" in said[0] and np.array_equal(*figures)


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
        ("pick --seeds photo.npy", "photo.npy: No such file"),
        ("turn --from a --to 4", "--from a: write it like"),
        ("turn --from 3 --to 4-2", "--to 4-2: write it like"),
        ("turn --from 3 --to 4 --steps 999999999", "too many for one file"),
        ("arithmetic 3-", "expression, a space before each sign: 3-:"),
        ("arithmetic 3+4", "expression, a space before each sign: 3+4:"),
        ("invert missing.png --scale 1000", "too many for one file"),
        ("dropout --boxes 3", "--boxes 3: write it like"),
        ("dropout --boxes 3:5,2,1,4", "16 pixels wide and 12 high"),
        ("dropout --boxes 3:0,0,17,4", "16 pixels wide and 12 high"),
        (f"dropout --boxes 3:0,0,{'9' * 5000},4", "write it like"),
        ("dropout --boxes 3:0,0,16,12", "places inside"),
        ("dropout --boxes cat:0,0,6,4", "--boxes"),
        ("dropout --boxes 3:0,0,6,4 --layer 2", "--layer 2"),
        ("features --seeds 0-3 --filters 17", "--filters 17: the last convolution has 16"),
        ("features --seeds 0-3 --data digits", "--seeds, --data"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(saved, capsys, words, says):
    with pytest.raises((SettingsError, SystemExit)) as refused:
        run(saved[3], words)
    said = capsys.readouterr().err.strip() or str(refused.value)
    assert says in said and "\n" not in said
    assert not list(Path().iterdir())


def test_no_photo_is_written_over(saved):
    photos = sorted(write_images(Path("photos"), 2).iterdir())
    before = [photo.read_bytes() for photo in photos]
    with pytest.raises(SettingsError, match=r"--output .*0001\.png: is one of the photos"):
        run(saved[3], f"invert {photos[0]} {photos[1]} --output {photos[1]}")
    assert [photo.read_bytes() for photo in photos] == before


def test_another_programs_checkpoint_takes_what_it_leaves_unsaid():
    generator = Generator(8, 8, 1, 16, activation="leaky_relu", norm="none")
    for weight in generator.parameters():
        torch.nn.init.normal_(weight, 0, 0.3)
    torch.save(generator.state_dict(), "a.pth")
    image = to_image(generate(generator, sample_latents([5], 8, "uniform")))[0]
    unsaid = "--activation leaky_relu --image_size 16x16 --z_dist uniform"
    figure = run("a.pth", f"pick --seeds 5 {unsaid}")
    assert find(figure, image) and unsaid.split()[0] in Image.open(figure).text["command"]
    assert not find(run("a.pth", "pick --seeds 5 --output c.png"), image)


@pytest.mark.parametrize("stranger", [Example, Projected])
@pytest.mark.parametrize("command", [*WORDS, "pick --move 1:2,2:-3", "invert photo.png --steps 3"])
def test_every_command_knows_other_programs_networks(stranger, command):
    generator = Example(12, (16, 8, 6)) if stranger is Example else stranger()
    critic = torch.nn.Sequential(*plain_critic())
    networks = {"netG": at_random(generator), "netD": at_random(critic)}
    torch.save({name: one.state_dict() for name, one in networks.items()}, "a.pth")
    Image.new("RGB", (40, 30), "red").save("photo.png")
    words = f"{command} {WORDS.get(command, '')} --activation relu --output figure.png"
    assert np.asarray(Image.open(run("a.pth", words))).std() > 10


def test_serve_without_gradio_says_what_to_install(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SettingsError, match="serve needs gradio: pip install"):
        run(saved[1], "serve")
