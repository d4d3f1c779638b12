"""The game: who moves in a step, by which rates, and what the step reports."""

import pytest
import torch

from game import drawn_at, make_players, train_step, update_ema
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
    for optimizer in players[2:4]:
        assert optimizer.defaults["lr"] == 0.0002
        assert optimizer.defaults["betas"] == (0.5, 0.999)
    rates = play(learning_rate=0.1, learning_rate_d=0.3)[0]
    assert [optimizer.defaults["lr"] for optimizer in rates[2:4]] == [0.1, 0.3]


def test_the_discriminator_learns_to_tell_while_the_generator_stands_still():
    _, metrics, _ = play(steps=60, learning_rate_g=0.0, learning_rate_d=0.002)
    loss_d, _, d_real, d_fake = metrics.tolist()
    assert loss_d < 0.2 and d_real > 0.9 and d_fake < 0.1


def test_the_average_follows_the_weights_and_forgets_the_start():
    players, _, _ = play(steps=3)
    start = make_players(
        Config(features=4, z_dim=8, channels=1, image_size=16), torch.device("cpu")
    )
    average, network = players.generator_ema, players.generator
    kept = {name: value.double() for name, value in start.generator.named_parameters()}
    average.load_state_dict(start.generator.state_dict())
    for step in range(1, 40):
        with torch.no_grad():
            for value in network.parameters():
                value += 1
        update_ema(average, network, step, 0.9)
        decay = min(0.9, step / (step + 9))
        for name, value in network.named_parameters():
            kept[name] = decay * kept[name] + (1 - decay) * value
    for name, value in average.named_parameters():
        torch.testing.assert_close(value.double(), kept[name], rtol=1e-5, atol=1e-5)
    update_ema(average, network, 40, 0.0)
    assert all(map(torch.equal, average.parameters(), network.parameters()))


def test_chance_follows_from_the_step_and_each_rank_takes_its_part():
    config = Config(fresh_latents=True, augment=True, image_size=16, channels=1)
    cpu = torch.device("cpu")
    whole = drawn_at(config, 7, 6, slice(None), cpu)
    assert {name: tuple(x.shape) for name, x in whole.items()} == {
        "z": (6, 100), "z_fresh": (6, 100), "chances": (3, 6, 7)
    }  # fmt: skip
    part = drawn_at(config, 7, 6, slice(2, 4), cpu)
    for name, x in whole.items():
        assert torch.equal(x[:, 2:4] if name == "chances" else x[2:4], part[name])
        assert not torch.equal(x, drawn_at(config, 8, 6, slice(None), cpu)[name])
    assert drawn_at(Config(), 7, 6, slice(None), cpu).keys() == {"z"}


def test_with_augmentation_the_generator_still_learns_through_it():
    """Its gradients come from what the discriminator sees, and every look is another."""
    config = Config(features=4, z_dim=8, channels=3, image_size=16, augment=True)
    players = make_players(config, torch.device("cpu"))
    before = [p.clone() for p in players.generator.parameters()]
    drawn = drawn_at(config, 1, 6, slice(None), torch.device("cpu"))
    metrics = train_step(players, LOSSES["bce"], torch.rand(6, 3, 16, 16) * 2 - 1, **drawn)
    assert metrics.isfinite().all()
    after = players.generator.parameters()
    assert all(not torch.equal(p, q) for p, q in zip(before, after, strict=True))
