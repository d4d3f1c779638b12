"""The game in words: judged from the log alone, by bounds that real runs lie between."""

import numpy as np
import pytest

from train import LOSSES
from training.monitor import (
    ADVICE,
    BALANCED,
    BEGINNING,
    COLLAPSED,
    D_WINS,
    FALLING,
    G_WINS,
    Monitor,
    variety,
)


def line(step, d_real=0.8, d_fake=0.2, **more):
    return {"step": step, "d_real": d_real, "d_fake": d_fake, **more}


GAMES = [
    (BEGINNING, "bce", []),
    (BEGINNING, "bce", [line(10)]),
    (BALANCED, "bce", [line(500)]),
    (BALANCED, "bce", [line(600, 0.5, 0.5)]),  # equilibrium
    (BEGINNING, "bce", [line(10, 0.99, 0.01)]),
    (D_WINS, "bce", [line(510, 0.99, 0.01)]),
    (D_WINS, "hinge", [line(510, 1.2, -1.1)]),
    (BALANCED, "hinge", [line(600, 0.6, -0.5)]),
    (G_WINS, "bce", [line(510, 0.7, 0.7)]),
    (G_WINS, "hinge", [line(510, 0.5, 0.5)]),
    (FALLING, "bce", [line(600, variety=0.9), line(700, variety=0.5)]),
    (BALANCED, "bce", [line(600, variety=0.5), line(700, variety=0.9)]),
    (BALANCED, "bce", [line(600, variety=1.5), line(700, variety=0.7)]),  # speckles went
    (COLLAPSED, "bce", [line(600, variety=0.9), line(700, variety=0.1)]),
    (BEGINNING, "bce", [line(100, variety=0.1), line(200, variety=0.01)]),
    (COLLAPSED, "bce", [line(600, variety=0.01)]),
]


@pytest.mark.parametrize(("state", "loss", "entries"), GAMES)
def test_a_game_in_words(state, loss, entries):
    monitor = Monitor(LOSSES[loss].outputs, entries)
    assert monitor.state == state
    assert bool(monitor.advice(700, at_once=True)) == (state not in (BEGINNING, BALANCED))


def test_one_step_that_swings_is_no_victory():
    entries = [line(step) for step in range(910, 1000, 10)]
    assert Monitor(LOSSES["bce"].outputs, [*entries, line(1000, 1.0, 0.0)]).state == BALANCED
    won = [*entries, *(line(step, 1.0, 0.0) for step in range(1000, 1200, 10))]
    monitor = Monitor(LOSSES["bce"].outputs, won)
    assert monitor.state == D_WINS and 1000 < monitor.since < 1100
    assert monitor.words(2300) == f"the discriminator is winning for {2300 - monitor.since:,} steps"
    assert monitor.words(monitor.since) == "the discriminator is winning"
    assert not monitor.advice(1100)
    assert monitor.advice(1600) == ADVICE[D_WINS] and not monitor.advice(1700)  # once
    assert Monitor(LOSSES["bce"].outputs, [line(100)]).words(200) == "just begun"


def test_advice_goes_to_the_player_that_wins():
    lost = [line(600, 0.6, 0.95, variety=0.01)]
    monitor = Monitor(LOSSES["bce"].outputs, lost)
    assert monitor.state == COLLAPSED and monitor.advice(600) == ADVICE[G_WINS]


def test_every_advice_names_a_flag_of_train():
    from train import Config

    for advice in ADVICE.values():
        flags = [word.strip(";,.") for word in advice.split() if word.startswith("--")]
        assert flags and all(flag[2:] in Config.__dataclass_fields__ for flag in flags)


def test_variety_is_the_mean_distance_of_two_images():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    pixels = images.reshape(5, -1).astype(float)
    pairs = [(pixels[i] - pixels[j]) for i in range(5) for j in range(5) if i != j]
    expected = np.mean([np.sqrt((pair**2).mean()) for pair in pairs])
    assert variety(images) == pytest.approx(expected)
    assert variety(images[[0, 0, 0]]) == pytest.approx(0, abs=1e-4) and variety(images[:1]) == 0
