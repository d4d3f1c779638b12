"""The game: who moves in a step, by which rates, and what the step reports."""

import pytest
import torch

from game import make_players, train_step
from losses import LOSSES
from train import Config


def play(steps=1, **settings):
    config = Config(features=4, z_dim=8, channels=1, image_size=16, **settings)
    players = make_players(config, torch.device("cpu"))
    torch.manual_seed(1)
    real = torch.rand(6, 1, 16, 16) * 2 - 1
    before = [[p.clone() for p in network.parameters()] for network in players[:2]]
    for _ in range(steps):
        fresh = torch.randn(6, 8) if config.fresh_latents else None
        metrics = train_step(players, LOSSES[config.loss], real, torch.randn(6, 8), fresh)
    moved = [
        any(not torch.equal(p, q) for p, q in zip(old, network.parameters(), strict=True))
        for old, network in zip(before, players[:2], strict=True)
    ]
    return players, metrics, moved


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_with_one_rate_at_zero_only_the_other_network_moves(loss, fresh):
    assert play(loss=loss, fresh_latents=fresh)[2] == [True, True]
    assert play(loss=loss, fresh_latents=fresh, learning_rate_g=0.0)[2] == [False, True]
    assert play(loss=loss, fresh_latents=fresh, learning_rate_d=0.0)[2] == [True, False]


def test_a_step_reports_the_losses_and_outputs_it_had():
    players, metrics, _ = play()
    assert metrics.shape == (4,) and not metrics.requires_grad and metrics.isfinite().all()
    d_real, d_fake = metrics[2:]
    assert 0 < d_real < 1 and 0 < d_fake < 1
    assert all(p.requires_grad for p in players.discriminator.parameters())


def test_adam_has_the_papers_settings():
    players, _, _ = play()
    for optimizer in players[2:]:
        assert optimizer.defaults["lr"] == 0.0002
        assert optimizer.defaults["betas"] == (0.5, 0.999)
    rates = play(learning_rate=0.1, learning_rate_d=0.3)[0]
    assert [optimizer.defaults["lr"] for optimizer in rates[2:]] == [0.1, 0.3]


def test_the_discriminator_learns_to_tell_while_the_generator_stands_still():
    _, metrics, _ = play(steps=60, learning_rate_g=0.0, learning_rate_d=0.002)
    loss_d, _, d_real, d_fake = metrics.tolist()
    assert loss_d < 0.2 and d_real > 0.9 and d_fake < 0.1
