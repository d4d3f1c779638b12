"""A notebook's image: the one that its seed draws."""

import matplotlib
import numpy as np
import pytest
from conftest import write_generator

from dataset import to_image
from models import Generator, generate, sample_latents
from visualization.show import show_random

matplotlib.use("Agg")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_it_shows_the_image_of_the_seed_that_it_gives(tmp_path, channels):
    from matplotlib import pyplot

    generator = Generator.from_checkpoint(write_generator(tmp_path / "a.pth", channels, "uniform"))
    seed = show_random(generator)
    assert {show_random(generator) for _ in range(4)} != {seed}
    assert show_random(generator, 7) == 7 and show_random(generator, seed) == seed
    figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
    titles = [figure.axes[0].get_title() for figure in figures]
    assert titles[0] == titles[-1] == f"seed {seed}" and titles[-2] == "seed 7"
    for number in (0, -1):
        [shown] = figures[number].axes[0].get_images()
        image = to_image(generate(generator, sample_latents([seed], 8, "uniform")))[0]
        assert np.array_equal(shown.get_array(), image.squeeze()) and shown.get_clim() == (0, 255)
    pyplot.close("all")
