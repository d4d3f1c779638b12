"""Latents by name; paths, turns and directions."""

import numpy as np
import pytest
import torch
from torch import nn

from models import Generator, sample_latents
from utils import SettingsError
from visualization.latents import (
    leading_directions,
    neighbours,
    read_displacement,
    read_latents,
    read_terms,
    rescale,
    turn,
    walk,
)


def sampled(*seeds, z_dim=100):
    return sample_latents(seeds, z_dim)


def test_a_list_takes_seeds_and_files_in_its_order(tmp_path):
    np.save(tmp_path / "photo.npy", sampled(30, 31).double().numpy())
    photo = str(tmp_path / "photo.npy")
    names, z = read_latents(f"5, {photo},7-8,{photo}:1", 100)
    assert names == ["5", "photo.npy:0", "photo.npy:1", "7", "8", "photo.npy:1"]
    assert torch.equal(z, sampled(5, 30, 31, 7, 8, 31))
    assert torch.equal(read_latents("4", 8, "uniform")[1], sample_latents([4], 8, "uniform"))


@pytest.mark.parametrize(
    ("text", "says"),
    [("5-3", "5-3"), ("", "write it like"), ("1,,2", "write it like"), ("photo.pth", "photo.npy"),
     ("9" * 5000, "write it like"),
     ("missing.npy", "missing.npy: No such file"), ("empty.npy", "empty.npy"),
     ("text.npy", "text.npy"), ("zip.npy", "zip.npy"), ("object.npy", "object.npy"),
     ("cut.npy", "cut.npy"), ("folder.npy", "folder.npy"), ("int.npy", "int64"),
     ("wide.npy", "1x9 of float32"), ("flat.npy", "8 of float32"), ("nan.npy", "not finite"),
     ("large.npy", "not finite"), ("good.npy:2", "rows 0 to 1"), ("0-10000", "10,000"),
     ("none.npy", "0x8 of float32"), ("many.npy", "10,000"), ("0,many.npy:10001", "rows 0 to"),
     ("1-99999999999999999999", "10,000")],
)  # fmt: skip
def test_what_is_no_list_of_latents_is_refused_by_name(tmp_path, monkeypatch, text, says):
    monkeypatch.chdir(tmp_path)
    good = np.zeros((2, 8), np.float32)
    (tmp_path / "folder.npy").mkdir()
    for name, array in {
        "good": good, "int": np.zeros((2, 8), int), "wide": np.zeros((1, 9), np.float32),
        "flat": good[0], "nan": good * np.nan, "large": np.full((1, 8), 1e300),
        "object": np.array([[{}]]), "none": good[:0], "many": np.zeros((10001, 8), np.float16),
    }.items():  # fmt: skip
        np.save(f"{name}.npy", array)
    contents = (tmp_path / "good.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(contents[:-1])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npy").write_text("no latents")
    with open("zip.npy", "wb") as file:
        np.savez(file, good)
    with pytest.raises(SettingsError, match="--from ") as caught:
        read_latents(text, 8, flag="--from")
    assert says in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_of_a_long_file_single_rows_are_taken(tmp_path):
    z = np.zeros((10001, 8), np.float32)
    z[7], z[9] = 5, np.nan
    np.save(tmp_path / "many.npy", z)
    assert (read_latents(f"{tmp_path}/many.npy:7", 8)[1] == 5).all()


def test_a_header_that_speaks_of_terabytes_claims_no_memory(tmp_path):
    path = tmp_path / "bomb.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (9999, 10**9)}
        )
    with pytest.raises(SettingsError, match=r"bomb\.npy"):
        read_latents(str(path), 10**9)


def test_terms_have_signs_and_ranges_stay_ranges():
    assert read_terms("3,17-20 - 4,9 +5") == [(1, "3,17-20"), (-1, "4,9"), (1, "5")]
    assert read_terms("- a b-c.npy + 3") == [(-1, "a b-c.npy"), (1, "3")]
    for wrong in ("", "3 -", "-"):
        with pytest.raises(SettingsError, match="expression"):
            read_terms(wrong)


@pytest.mark.parametrize("path", ["spherical", "straight"])
@pytest.mark.parametrize("loop", [False, True])
def test_a_walk_passes_its_latents_to_the_bit_in_equal_steps(path, loop):
    z = rescale(sampled(3, 17, 22))
    way = walk(z, 10, path, loop)
    assert way.shape == (30 if loop else 21, 100)
    assert torch.equal(way[::10], z)
    legs = torch.cat([way, z[:1]]) if loop else way
    if path == "straight":
        steps = legs.diff(dim=0).norm(dim=1)
    else:
        steps = torch.cosine_similarity(legs[1:], legs[:-1]).acos()
    for leg in steps.split(10):
        assert torch.allclose(leg, leg[0].expand(10), rtol=0.03)


def test_a_spherical_walk_keeps_the_norm_and_a_straight_one_does_not():
    ends = sampled(3, 17).norm(dim=1)
    around, through = walk(sampled(3, 17), 10).norm(dim=1), walk(sampled(3, 17), 10, "straight")
    assert ends.min() * 0.99 < around.min() and around.max() < ends.max() * 1.01
    assert through[5].norm() < 0.8 * ends.min()


def test_a_walk_between_latents_in_one_line_is_finite():
    z = torch.cat([sampled(3, 3), -sampled(3), torch.zeros(1, 100), 2 * sampled(3)])
    for way in (walk(z, 4), walk(z, 4, loop=True)):
        assert way.isfinite().all() and torch.equal(way[::4], z)


def test_neighbours_are_within_a_quarter_and_differ():
    z = sampled(3)[0]
    offsets = neighbours(z) - z
    assert offsets.shape == (8, 100) and len(offsets.unique(dim=0)) == 8
    assert 0.24 < offsets.abs().max() <= 0.2501 and offsets.mean().abs() < 0.02


@pytest.mark.parametrize("z_dist", ["normal", "uniform"])
def test_a_mean_is_given_the_norm_of_a_latent(z_dist):
    latents = sample_latents(range(100), 100, z_dist)
    norm, mean = latents.norm(dim=1).mean(), latents[:3].mean(0)
    scaled = rescale(mean, z_dist)
    assert mean.norm() < 0.7 * norm and abs(scaled.norm() / norm - 1) < 0.03
    assert torch.cosine_similarity(scaled, mean, dim=0) > 0.9999
    assert torch.equal(rescale(torch.zeros(100)), torch.zeros(100))


def test_a_turn_keeps_the_norm_and_has_the_latent_itself_in_its_middle():
    z, direction = sampled(50, 51), sampled(3)[0]
    turned = turn(z, direction, 5)
    assert turned.shape == (2, 5, 100) and torch.equal(turned[:, 2], z)
    assert torch.allclose(turned.norm(dim=2), z.norm(dim=1)[:, None].expand(2, 5))
    likeness = torch.cosine_similarity(turned, direction.expand(2, 5, 100), dim=2)
    assert (likeness.diff(dim=1) > 0.05).all()
    ends = z[0] + direction
    assert torch.cosine_similarity(turned[0, 4], ends, dim=0) > 0.9999
    assert turn(-direction[None], direction, 3).isfinite().all()


def with_linear_layer(activation):
    """A generator as other programs have: a linear layer first, and batch norm by feature."""
    layers = [nn.Linear(6, 12), nn.BatchNorm1d(12), activation(), nn.Unflatten(1, (3, 2, 2))]
    network = nn.Sequential(*layers, nn.Tanh()).eval()
    network.z_dim = 6
    return network


@pytest.mark.parametrize("activation", [nn.LeakyReLU, nn.ELU, None])
def test_directions_are_the_singular_vectors_of_the_first_layer_and_its_batch_norm(activation):
    torch.manual_seed(0)
    network = with_linear_layer(activation) if activation else Generator(6, 8, 3, 8).eval()
    layer, norm = [module for module in network.modules() if module._parameters][:2]
    nn.init.normal_(layer.weight)
    nn.init.uniform_(norm.weight, 0.1, 9)  # by which the map differs from the weights' alone
    nn.init.uniform_(norm.running_var, 0.1, 9)
    by_input = layer.weight.T if isinstance(layer, nn.Linear) else layer.weight.flatten(1)
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    gain = gain.repeat_interleave(by_input.shape[1] // len(gain))
    expected = torch.linalg.svd((by_input * gain).detach()).U.T
    expected *= expected.gather(1, expected.abs().argmax(1, keepdim=True)).sign()
    torch.testing.assert_close(leading_directions(network, 6), expected, atol=1e-4, rtol=0)
    assert torch.equal(leading_directions(network, 2), leading_directions(network, 6)[:2])


def test_displacements_add_up():
    generator = Generator(6, 8, 3, 8).eval()
    first, _, third = leading_directions(generator, 3)
    moved = read_displacement(generator, " 1:2.5, 3:-4,1:1")
    torch.testing.assert_close(moved, 3.5 * first - 4 * third)
    for wrong in ("", "1", "0:2", "1:", "1:x", "-1:2", "1:1e9", "1:2,", "7:1"):
        with pytest.raises(SettingsError, match=f"^--move {wrong}: "):
            read_displacement(generator, wrong)
