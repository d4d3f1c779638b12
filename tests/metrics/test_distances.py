"""Distances that have a closed form, a definition or a known direction."""

import numpy as np
import pytest
import torch

from metrics.distances import (
    compare,
    frechet_distance,
    kernel_distance,
    manifold_scores,
    nearest,
)


def normal(count, size=8, seed=0, scale=1.0, shift=0.0):
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.normal(shift, scale, (count, size)).astype(np.float32))


def test_a_set_is_no_distance_from_itself():
    values = compare(normal(400), normal(400))
    assert abs(values["frechet"]) < 1e-6
    assert values["precision"] == values["recall"] == values["coverage"] == 1
    assert values["density"] == pytest.approx(1, abs=0.2)
    assert abs(values["kid"]) < 0.05


def test_frechet_of_two_normal_distributions_is_the_closed_form():
    """With axes of their own: |shift|^2 + the sum of (scale - 1)^2 over the dimensions."""
    real, fake = normal(40_000, seed=1), normal(40_000, seed=2, scale=1.5, shift=0.5)
    assert frechet_distance(real, fake) == pytest.approx(8 * (0.5**2 + 0.5**2), rel=0.03)


@pytest.mark.parametrize("count", [300, 20])
def test_frechet_is_what_a_direct_computation_gives(count):
    """Also with fewer images than features, where the covariances have no inverse."""
    real, fake = normal(300, 40, 1).double(), normal(count, 40, 2, 2.0, 1.0).double()
    eigenvalues, axes = torch.linalg.eigh(real.T.cov())
    root = axes * eigenvalues.clamp(0).sqrt() @ axes.T
    middle = torch.linalg.eigvalsh(root @ fake.T.cov() @ root).clamp(0).sqrt().sum()
    traces = real.T.cov().trace() + fake.T.cov().trace()
    direct = (real.mean(0) - fake.mean(0)).square().sum() + traces - 2 * middle
    assert frechet_distance(real, fake) == pytest.approx(direct.item(), rel=1e-6)


def test_kid_is_the_unbiased_estimate_of_the_polynomial_kernel():
    real, fake = normal(200, seed=1), normal(200, seed=2, shift=1.0)

    def kernel(a, b):
        return (a.double() @ b.double().T / 8 + 1) ** 3

    own = sum(k.sum() - k.trace() for k in (kernel(real, real), kernel(fake, fake)))
    direct = own / (200 * 199) - 2 * kernel(real, fake).mean()
    assert kernel_distance(real, fake) == pytest.approx(direct.item(), rel=1e-4)


def test_kid_of_one_distribution_is_zero_on_average():
    draws = [kernel_distance(normal(100, seed=i), normal(100, seed=500 + i)) for i in range(40)]
    assert min(draws) < 0 < max(draws)
    assert abs(np.mean(draws)) < 3 * np.std(draws) / 40**0.5


def test_kid_of_many_follows_from_the_seed_and_leaves_the_random_numbers_alone(monkeypatch):
    monkeypatch.setattr("metrics.distances.KID_SUBSET", 50)
    real, fake = normal(200, seed=1), normal(200, seed=2, shift=0.3)
    before = torch.get_rng_state()
    first = kernel_distance(real, fake, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert kernel_distance(real, fake, seed=3) == first != kernel_distance(real, fake, seed=4)


def test_precision_recall_density_and_coverage_are_their_definitions():
    real, fake = normal(60, 3, 1), normal(45, 3, 2, 1.4, 0.3)
    own_real, own_fake, across = (
        (a[:, None] - b).norm(dim=2).numpy() for a, b in ((real, real), (fake, fake), (real, fake))
    )

    def reach(own, k):
        return np.sort(own, axis=1)[:, k]

    assert manifold_scores(real, fake) == pytest.approx({
        "precision": (across <= reach(own_real, 3)[:, None]).any(0).mean(),
        "recall": (across <= reach(own_fake, 3)).any(1).mean(),
        "density": (across < reach(own_real, 5)[:, None]).sum(0).mean() / 5,
        "coverage": (across < reach(own_real, 5)[:, None]).any(1).mean(),
    })  # fmt: skip


def test_precision_falls_when_fakes_are_broad_and_recall_when_they_are_narrow():
    real = normal(500, seed=1)
    same, broad, narrow = (
        manifold_scores(real, normal(500, seed=2, scale=scale)) for scale in (1, 3, 0.3)
    )
    assert broad["precision"] < 0.3 * same["precision"]
    assert broad["recall"] > 0.9 * same["recall"]
    assert narrow["recall"] < 0.3 * same["recall"]
    assert narrow["precision"] > same["precision"]


def test_a_collapse_to_one_mode_of_two_halves_recall_and_coverage():
    shift = torch.zeros(8)
    shift[0] = 20
    real = torch.cat([normal(250, seed=1), normal(250, seed=2) + shift])
    both = torch.cat([normal(250, seed=3), normal(250, seed=4) + shift])
    before, after = manifold_scores(real, both), manifold_scores(real, normal(500, seed=3))
    assert after["precision"] > 0.9 * before["precision"]
    assert after["recall"] < 0.6 * before["recall"]
    assert after["coverage"] < 0.6 * before["coverage"]
    point = manifold_scores(real, real[:1] + normal(500, seed=5, scale=1e-3))
    assert point["precision"] == 1 and max(point["recall"], point["coverage"]) < 0.05


def test_the_nearest_are_found_with_their_distances_and_a_copy_is_at_zero():
    features, others = 100 + normal(30, seed=1), 100 + normal(90, seed=2)
    others[77] = features[5]
    distances, rows = nearest(features, others, 4)
    direct, order = (features[:, None] - others).norm(dim=2).sort()
    assert torch.equal(rows, order[:, :4]) and torch.equal(distances, direct[:, :4])
    assert distances[5, 0] == 0 and rows[5, 0] == 77


def test_chunks_change_nothing(monkeypatch):
    real, fake = normal(100, seed=1), normal(80, seed=2)
    whole = manifold_scores(real, fake), nearest(real, fake, 3)
    monkeypatch.setattr("metrics.distances.CHUNK", 7)
    assert manifold_scores(real, fake) == whole[0]
    assert all(map(torch.equal, nearest(real, fake, 3), whole[1]))
