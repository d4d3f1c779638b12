"""The losses, and one step: who moves, by which rates, and what is reported."""

import copy

import numpy as np
import pytest
import torch

from train import LOSSES, METRICS, Config, build_gan, train_step, update_ema
from training.inputs import Inputs, ema_decay, step_noise

CPU = torch.device("cpu")
SMALL = {"features": 4, "z_dim": 8, "channels": 1, "image_size": 16}


def play(steps=1, **settings):
    """Train on one batch; return the networks, the last metrics, and which networks moved."""
    config = Config(**SMALL | {"precision": "fp32"} | settings)
    gan = build_gan(config, CPU)
    torch.manual_seed(1)
    real = torch.rand(6, config.channels, 16, 16) * 2 - 1
    before = [[p.clone() for p in network.parameters()] for network in gan[:2]]
    for step in range(1, steps + 1):
        metrics = train_step(
            gan, LOSSES[config.loss], real, **step_noise(config, step, 6),
            precision=config.precision, r1=config.r1,
        )  # fmt: skip
    moved = [
        any(not torch.equal(p, q) for p, q in zip(old, network.parameters(), strict=True))
        for old, network in zip(before, gan[:2], strict=True)
    ]
    return gan, metrics, moved


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
        "hinge": (np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean(), -fake.mean()),
    }
    assert expected.keys() == LOSSES.keys()
    logits = torch.from_numpy(real), torch.from_numpy(fake)
    for name, (loss_d, loss_g) in expected.items():
        assert LOSSES[name].discriminator(*logits).item() == pytest.approx(loss_d)
        assert LOSSES[name].generator(logits[1]).item() == pytest.approx(loss_g)
    zeros = torch.zeros(4)  # equilibrium: D cannot tell
    assert LOSSES["bce"].discriminator(zeros, zeros).item() == pytest.approx(2 * np.log(2))
    assert LOSSES["bce"].generator(zeros).item() == pytest.approx(np.log(2))


@pytest.mark.parametrize("name", LOSSES)
def test_each_network_descends_its_loss_towards_winning(name):
    loss = LOSSES[name]
    low, high = torch.full((4,), -0.5), torch.full((4,), 0.5)
    assert loss.discriminator(high, low) < loss.discriminator(low, high)
    assert loss.generator(high) < loss.generator(low)


@pytest.mark.parametrize("settings", [{}, {"fresh_latents": True}, {"augment": True}, {"r1": 1.0}])
@pytest.mark.parametrize("loss", LOSSES)
def test_with_one_rate_at_zero_only_the_other_network_moves(loss, settings):
    settings = {"loss": loss, "channels": 3, **settings}
    assert play(**settings)[2] == [True, True]
    assert play(**settings, learning_rate_g=0.0)[2] == [False, True]
    assert play(**settings, learning_rate_d=0.0)[2] == [True, False]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("r1", [0.0, 3.0])
def test_a_step_reports_what_it_had_in_every_precision(precision, r1):
    gan, metrics, _ = play(steps=3, precision=precision, r1=r1)
    values = dict(zip(METRICS, metrics.tolist(), strict=True))
    assert not metrics.requires_grad and metrics.isfinite().all()
    assert 0 < values["d_real"] < 1 and 0 < values["d_fake"] < 1
    assert (values["r1"] > 0) == (r1 > 0)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in gan.discriminator.parameters())
    exact = play(steps=3, r1=r1)[1]
    torch.testing.assert_close(metrics, exact, rtol=0.05, atol=0.02)


def test_fp16_scales_each_loss_by_its_own_scaler_and_survives_an_overflow():
    config = Config(**SMALL, precision="fp16")
    gan = build_gan(config, CPU)
    real = torch.rand(6, 1, 16, 16) * 2 - 1
    inputs = {**step_noise(config, 1, 6), "precision": "fp16"}
    for _ in range(8):  # until the scales have settled
        train_step(gan, LOSSES["bce"], real, **inputs)
    scales = gan.scaler_d.get_scale(), gan.scaler_g.get_scale()
    before = copy.deepcopy(gan.discriminator.state_dict())
    train_step(gan, LOSSES["bce"], real * 1e8, **inputs)  # beyond fp16's range
    assert (gan.scaler_d.get_scale(), gan.scaler_g.get_scale()) == (scales[0] / 2, scales[1])
    for name, parameter in gan.discriminator.named_parameters():
        assert torch.equal(parameter, before[name])


def test_r1_is_the_squared_gradient_of_the_logit_with_respect_to_the_image():
    """Against finite differences, in float64, without batch norm."""
    config = Config(**SMALL, norm="none", precision="fp32")
    gan = build_gan(config, CPU)
    real = (torch.rand(2, 1, 16, 16) * 2 - 1).double()
    network = copy.deepcopy(gan.discriminator).double()
    squared = 0.0
    with torch.no_grad():
        for i in range(16):
            for j in range(16):
                step = torch.zeros_like(real)
                step[:, :, i, j] = 1e-6
                squared += ((network(real + step) - network(real - step)) / 2e-6) ** 2
    metrics = train_step(gan, LOSSES["bce"], real.float(), torch.randn(2, 8), r1=8.0)
    assert metrics[-1].item() == pytest.approx(8 / 2 * squared.mean().item(), rel=1e-3)


def test_r1_lowers_the_gradient():
    gradients = [play(steps=60, r1=r1, learning_rate=0.002)[0] for r1 in (0.0, 10.0)]
    x = (torch.rand(16, 1, 16, 16) * 2 - 1).requires_grad_()
    norms = [
        torch.autograd.grad(gan.discriminator(x).sum(), x)[0].square().sum().item()
        for gan in gradients
    ]
    assert norms[1] < norms[0] / 2


def test_adam_has_the_papers_settings():
    gan, _, _ = play()
    for optimizer in (gan.optimizer_g, gan.optimizer_d):
        assert optimizer.defaults["lr"] == 0.0002
        assert optimizer.defaults["betas"] == (0.5, 0.999)
    gan, _, _ = play(learning_rate=0.1, learning_rate_d=0.3)
    assert (gan.optimizer_g.defaults["lr"], gan.optimizer_d.defaults["lr"]) == (0.1, 0.3)


def test_the_discriminator_learns_to_tell_while_the_generator_stands_still():
    _, metrics, _ = play(steps=60, learning_rate_g=0.0, learning_rate_d=0.002)
    loss_d, _, d_real, d_fake, _ = metrics.tolist()
    assert loss_d < 0.2 and d_real > 0.9 and d_fake < 0.1


def test_the_ema_follows_the_weights_and_forgets_the_start():
    start = build_gan(Config(**SMALL), CPU)
    ema, network = start.generator_ema, start.generator
    expected = {name: value.double() for name, value in network.named_parameters()}
    for step in range(1, 40):
        with torch.no_grad():
            for value in network.parameters():
                value += 1
        decay = ema_decay(0.9, step)
        update_ema(ema, network, torch.tensor(1 - decay))
        for name, value in network.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in ema.named_parameters():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5)
    update_ema(ema, network, 1 - ema_decay(0.0, 40))
    assert all(map(torch.equal, ema.parameters(), network.parameters()))


def test_inputs_follow_from_the_step_and_each_rank_takes_its_shard(monkeypatch):
    config = Config(**SMALL, mirror=True, fresh_latents=True, augment=True)
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 1), np.uint8)

    def inputs(start, count, shard=slice(None)):
        stream = Inputs(config, images, 6, shard, CPU).steps(start)
        return [next(stream) for _ in range(count)]

    whole = inputs(0, 12)
    assert {name: tuple(x.shape) for name, x in whole[0].items()} == {
        "real": (6, 16, 16, 1), "flip": (6,), "z": (6, 8), "z_fresh": (6, 8),
        "chances": (3, 6, 7), "ema_weight": (),
    }  # fmt: skip
    monkeypatch.setattr("training.inputs.BLOCK_STEPS", 3)  # however they are made
    for expected, x in zip(whole[4:], inputs(4, 8), strict=True):
        assert all(torch.equal(expected[name], x[name]) for name in expected)
    for expected, x in zip(whole, inputs(0, 12, slice(2, 4)), strict=True):
        for name in ("real", "flip", "z", "z_fresh"):
            assert torch.equal(expected[name][2:4], x[name])
        assert torch.equal(expected["chances"][:, 2:4], x["chances"])
    assert not torch.equal(whole[0]["z"], whole[1]["z"])
    epoch = torch.cat([x["real"] for x in whole[:3]])  # 18 of 20 images, each once
    assert len(epoch.flatten(1).unique(dim=0)) == 18


def test_half_of_the_images_are_flipped():
    config = Config(**SMALL, mirror=True)
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 1), np.uint8)
    inputs = Inputs(config, images, 64, slice(None), CPU)
    step = next(inputs.steps(0))
    real = inputs.real(step["real"], step["flip"])
    plain = inputs.real(step["real"])
    assert real.shape == (64, 1, 16, 16) and real.min() >= -1 and real.max() <= 1
    flipped = (real == plain.flip(3)).flatten(1).all(1)
    assert torch.equal(flipped, step["flip"]) and 15 < flipped.sum() < 49
    assert torch.equal(real[~flipped], plain[~flipped])
