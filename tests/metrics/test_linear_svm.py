"""The SVM is scikit-learn's, and its C the one that the validation images like best."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import LinearSVC

from metrics import linear_svm
from probe import standardise


@pytest.fixture(scope="module")
def digits():
    """Standardised pixels (1797, 64) and classes of handwritten digits, in random order."""
    x, y = map(torch.from_numpy, load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order].float(), y[order]
    standardise(x)
    return x, y


def objective(weights, x, y, c):
    signs = torch.where(y == torch.arange(10)[:, None], 1.0, -1.0).double()
    hinge = (1 - signs * linear_svm.scores(weights.double(), x.double())).clamp(min=0)
    return (weights.double().square().sum() / 2 + c * hinge.square().sum()).item()


@pytest.mark.parametrize("c", [1e-4, 1e-3, 1e-2])
def test_the_svm_is_that_of_scikit_learn(digits, c):
    (x, y), count = digits, 1200
    theirs = LinearSVC(C=c, dual=False, tol=1e-8, max_iter=10_000).fit(x[:count], y[:count])
    weights = np.concatenate([theirs.coef_, theirs.intercept_[:, None]], 1)
    best = objective(torch.from_numpy(weights), x[:count], y[:count], c)

    ours = linear_svm.train(x[:count], y[:count], 10, c, tolerance=1e-5)
    assert objective(ours, x[:count], y[:count], c) == pytest.approx(best, rel=1e-5)
    accuracy = linear_svm.accuracy(ours, x[count:], y[count:])
    assert accuracy == pytest.approx(theirs.score(x[count:], y[count:]), abs=5e-4)

    quick = linear_svm.train(x[:count], y[:count], 10, c)
    assert objective(quick, x[:count], y[:count], c) < 1.02 * best
    start = linear_svm.train(x[:count], y[:count], 10, c / 2)
    warm = linear_svm.train(x[:count], y[:count], 10, c, start, tolerance=1e-5)
    assert objective(warm, x[:count], y[:count], c) == pytest.approx(best, rel=1e-5)


def test_c_is_the_one_that_the_validation_likes_best(digits):
    x, y = digits[0][:900], digits[1][:900]
    draws = [np.arange(0, 40), np.arange(20, 60)]
    chosen = linear_svm.choose(x, y, 10, 60, draws)
    for c in linear_svm.GRID:
        weights = [linear_svm.train(x[rows], y[rows], 10, c) for rows in draws]
        mean = np.mean([linear_svm.accuracy(each, x[60:], y[60:]) for each in weights])
        assert mean <= chosen.accuracy + 0.01
        if c == chosen.c:
            assert mean == pytest.approx(chosen.accuracy, abs=0.01)
    assert len(chosen.weights) == 2
