"""A linear support vector machine: an L2-SVM of each class against the rest, all trained at once.

The objective is that of scikit-learn's `LinearSVC(loss="squared_hinge")`, whose bias is penalised
as a weight is. A step costs two matrix products, on whichever device the features are.

Shapes: N images, D features, K classes; x (N, D) floats, y (N,) int64 from 0 to K - 1, and the
weights (K, D + 1), of which the last column is the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

# The grid of the DCGAN authors' code, made for 7,168 features that deviate by about 0.65, and below
# it smaller ones: for features that deviate by 1, and for more of them.
GRID = (2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
TOLERANCE = 0.003  # on 30,000 CIFAR images 0.03 % and 0.2 points from what 0.001 gives


class Chosen(NamedTuple):
    """A penalty of errors, and what it led to."""

    c: float
    accuracy: float  # on the validation images, the mean over all SVMs
    weights: list[Tensor]  # of each SVM


@torch.no_grad()
def train(
    x: Tensor,
    y: Tensor,
    classes: int,
    c: float,
    start: Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> Tensor:
    """Return the weights w of each class that minimise |w|^2 / 2 + c * sum(max(0, 1 - t * f)^2).

    There f = w[:D] @ x + w[D] is an image's score, and t is 1 if it is of the class, else -1. By
    L-BFGS from the weights `start`, or from 0, until no slope is more than `tolerance` of the
    largest at 0. It takes the fewest steps if all features have mean 0 and the same deviation.
    """
    sign = torch.where(y == torch.arange(classes, device=y.device)[:, None], 1.0, -1.0)
    weights = x.new_zeros(classes, x.shape[1] + 1) if start is None else start.clone()

    def slope(residual: Tensor) -> Tensor:  # from (K, N) to (K, D + 1)
        return -2 * c * torch.cat([residual @ x, residual.sum(1, keepdim=True)], 1)

    def objective() -> Tensor:
        hinge = (1 - sign * scores(weights, x)).clamp_(min=0)
        weights.grad = weights + slope(sign * hinge)
        return weights.square().sum() / 2 + c * hinge.square().sum()

    optimizer = torch.optim.LBFGS(
        [weights], max_iter=1000, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=tolerance * slope(sign).abs().max().item(), tolerance_change=0,
    )  # fmt: skip
    optimizer.step(objective)
    return weights


def scores(weights: Tensor, x: Tensor) -> Tensor:
    """Return the score (K, N) that each class has for each image."""
    return torch.addmm(weights[:, -1:], weights[:, :-1], x.T)


def accuracy(weights: Tensor, x: Tensor, y: Tensor) -> float:
    """Return the share of images whose own class has the highest score."""
    return (scores(weights, x).argmax(0) == y).float().mean().item()


def choose(
    x: Tensor, y: Tensor, classes: int, count: int, draws: Sequence[slice | np.ndarray]
) -> Chosen:
    """Choose c from `GRID` by the accuracy on the images from `count` on.

    The images before them are learnt from, by one SVM for each of `draws`, which holds their
    rows. Each starts from its weights at the last c, and c grows until the accuracy is a standard
    error below its best: large ones take longest.
    """
    weights = [None] * len(draws)
    tried: list[Chosen] = []
    for c in tqdm(GRID, desc="Choosing C", disable=None, leave=False):
        weights = [
            train(x[rows], y[rows], classes, c, start)
            for rows, start in zip(draws, weights, strict=True)
        ]
        shares = [accuracy(each, x[count:], y[count:]) for each in weights]
        tried.append(Chosen(c, sum(shares) / len(shares), weights))
        best = max(tried, key=lambda chosen: chosen.accuracy)
        error = (best.accuracy * (1 - best.accuracy) / (len(x) - count)) ** 0.5
        if tried[-1].accuracy < best.accuracy - error:
            break
    return best
