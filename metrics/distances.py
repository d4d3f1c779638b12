"""Distances between two sets of images by their features (N, D), one row an image.

Frechet distance and KID are torchmetrics'; precision and recall are those of Kynkaanniemi et al.
2019 (arXiv 1904.06991), density and coverage those of Naeem et al. 2020 (arXiv 2002.09797).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from tqdm import tqdm

CHUNK = 1024  # rows whose distances from all others are held at a time
KID_SUBSET, KID_SUBSETS = 1000, 100  # Binkowski et al. 2018: the mean over random subsets
PRECISION_K, DENSITY_K = 3, 5  # neighbours, as in the two papers
FEWEST = DENSITY_K + 1  # images that have so many neighbours


def compare(real: Tensor, fake: Tensor, seed: int = 0) -> dict[str, float]:
    """Return all distances of features (M, D) from those of real images (N, D), by their names.

    Takes at least `FEWEST` rows of each. `seed` is that of KID's random subsets.
    """
    return {
        "frechet": frechet_distance(real, fake),
        "kid": kernel_distance(real, fake, seed),
        **manifold_scores(real, fake),
    }


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Return the squared Frechet distance of two normal distributions fitted to (N, D), (M, D).

    It is a FID if the features are Inception's. Fewer rows give a larger value, all else equal.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # takes seconds to import

    # Of this process's features: the others of a run on many GPUs take no part.
    metric = FrechetInceptionDistance(_passing_on(real), sync_on_compute=False)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return metric.compute().item()


def kernel_distance(real: Tensor, fake: Tensor, seed: int = 0) -> float:
    """Return the KID of (N, D) and (M, D), whose expectation is 0 for sets of one distribution."""
    from torchmetrics.image.kid import KernelInceptionDistance

    count = min(len(real), len(fake))
    with warnings.catch_warnings(action="ignore"):  # it says that it holds the features
        metric = KernelInceptionDistance(
            _passing_on(real),
            subsets=KID_SUBSETS if count > KID_SUBSET else 1,
            subset_size=min(count, KID_SUBSET),
            sync_on_compute=False,
        )
    metric.update(real, real=True)
    metric.update(fake, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return metric.compute()[0].item()


def _passing_on(features: Tensor) -> nn.Module:
    """Return the feature network that torchmetrics asks for: the features are there already."""
    network = nn.Identity()
    network.num_features = features.shape[1]
    return network


def manifold_scores(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Return precision, recall, density and coverage of (M, D) against real features (N, D).

    An image's ball reaches to its k-th neighbour in its own set. Precision is the share of fake
    images in some real ball, recall that of real ones in some fake ball; density counts the real
    balls around a fake image, over k; coverage is the share of real balls with a fake in them.
    """
    radii_real = nearest(real, real, DENSITY_K + 1)[0]  # the nearest is the image itself
    radii_fake = nearest(fake, fake, PRECISION_K + 1)[0][:, PRECISION_K]
    inside = torch.zeros(len(fake), dtype=torch.bool)
    recalled, covered, within = 0, 0, 0
    for part, radii in zip(_chunks(real), radii_real.split(CHUNK), strict=True):
        distances = torch.cdist(part, fake)
        inside |= (distances <= radii[:, PRECISION_K, None]).any(0)
        recalled += (distances <= radii_fake).any(1).sum().item()
        near = distances < radii[:, DENSITY_K, None]
        covered += near.any(1).sum().item()
        within += near.sum().item()
    return {
        "precision": inside.float().mean().item(),
        "recall": recalled / len(real),
        "density": within / (DENSITY_K * len(fake)),
        "coverage": covered / len(real),
    }


def nearest(features: Tensor, others: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the distances of (N, D) to the nearest `count` of (M, D), and which those are.

    Both are (N, count), the nearest first.
    """
    distances, rows = [], []
    for part in _chunks(features):
        near = torch.cdist(part, others).topk(count, largest=False).indices
        # Anew, as cdist gives a copy's distance not as 0 but as the square root of what it rounds.
        exact, order = (part[:, None] - others[near]).norm(dim=2).sort()
        distances.append(exact)
        rows.append(near.gather(1, order))
    return torch.cat(distances), torch.cat(rows)


def _chunks(features: Tensor) -> Iterable[Tensor]:
    return tqdm(features.split(CHUNK), desc="Comparing features", disable=None, leave=False)
