"""Each loss against its formula, at equilibrium, and in the direction of winning."""

import numpy as np
import pytest
import torch

from losses import LOSSES


def test_losses_against_their_formulas():
    real, fake = np.array([2.0, -1.0, 0.5]), np.array([-3.0, 0.7, 1.5])

    def d(logit):
        return 1 / (1 + np.exp(-logit))

    bce_d = -np.log(d(real)).mean() - np.log(1 - d(fake)).mean()
    expected = {
        "bce": (bce_d, -np.log(d(fake)).mean()),
        "minimax": (bce_d, np.log(1 - d(fake)).mean()),
        "lsgan": (
            ((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2,
            ((fake - 1) ** 2).mean() / 2,
        ),
        "hinge": (
            np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean(),
            -fake.mean(),
        ),
    }
    assert expected.keys() == LOSSES.keys()
    logits = torch.from_numpy(real), torch.from_numpy(fake)
    for name, (loss_d, loss_g) in expected.items():
        assert LOSSES[name].discriminator(*logits).item() == pytest.approx(loss_d)
        assert LOSSES[name].generator(logits[1]).item() == pytest.approx(loss_g)


def test_losses_at_equilibrium():
    zeros = torch.zeros(4)
    assert LOSSES["bce"].discriminator(zeros, zeros).item() == pytest.approx(2 * np.log(2))
    assert LOSSES["bce"].generator(zeros).item() == pytest.approx(np.log(2))


@pytest.mark.parametrize("name", LOSSES)
def test_each_player_descends_its_loss_towards_winning(name):
    """D's loss falls as it tells better; G's falls as D takes its images for real."""
    loss = LOSSES[name]
    low, high = torch.full((4,), -0.5), torch.full((4,), 0.5)
    assert loss.discriminator(high, low) < loss.discriminator(low, high)
    assert loss.generator(high) < loss.generator(low)
