"""Augmentation moves, recolours and cuts by what it says, and lets gradients through."""

import pytest
import torch

from training.augment import CHANCES, augment

STILL = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]  # only the hole, in the middle
SIDE = 16


def changed(x, **chances):
    """Augment one image with the named chances, the hole moved out as far as it goes."""
    names = ("brightness", "saturation", "contrast", "down", "right", "top", "left")
    still = dict(zip(names, STILL, strict=True)) | {"top": 0.0, "left": 0.0} | chances
    return augment(x[None], torch.tensor([list(still.values())]))[0]


def image():
    return torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def outside_hole(x):
    return x[:, SIDE // 4 :, SIDE // 4 :]


def test_chances_in_the_middle_change_nothing_but_the_hole():
    x = image()
    seen = changed(x)
    torch.testing.assert_close(outside_hole(seen), outside_hole(x))
    assert (seen[:, : SIDE // 4, : SIDE // 4] == 0).all()
    middle = changed(x, top=0.5, left=0.5)
    assert (middle == 0).sum() == 3 * (SIDE // 2) ** 2
    assert (middle[:, 4:12, 4:12] == 0).all()


@pytest.mark.parametrize(("chance", "by"), [(0.0, -2), (0.999, 2), (0.3, -1)])
def test_it_moves_by_whole_pixels_and_grey_comes_in(chance, by):
    x = image()
    down = changed(x, down=chance)
    rows = range(max(by, 0) + 6, SIDE + min(by, 0) - 6)
    for row in rows:
        torch.testing.assert_close(down[:, row], x[:, row - by])
    right = changed(x, right=chance)
    torch.testing.assert_close(
        right.transpose(1, 2)[:, 6:10], changed(x, right=0.5).transpose(1, 2)[:, 6 - by : 10 - by]
    )
    edge = right[:, 8:, -1] if by < 0 else down[:, 0, 8:]
    assert (edge == 0).all()


def test_brightness_saturation_and_contrast():
    x = image()
    torch.testing.assert_close(outside_hole(changed(x, brightness=1.0)), outside_hole(x) + 0.5)
    grey = outside_hole(changed(x, saturation=0.0))
    torch.testing.assert_close(grey, outside_hole(x).mean(0, keepdim=True).expand_as(grey))
    flat = outside_hole(changed(x, contrast=0.0))
    torch.testing.assert_close(flat, x.mean() + 0.5 * (outside_hole(x) - x.mean()))


def test_each_image_has_chances_of_its_own_and_gradients_pass():
    x = image().expand(5, -1, -1, -1).clone().requires_grad_()
    seen = augment(x, torch.rand(5, CHANCES, generator=torch.Generator().manual_seed(1)))
    assert len({tuple(one.flatten().tolist()) for one in seen.detach()}) == 5
    seen.square().sum().backward()
    assert x.grad.isfinite().all() and (x.grad != 0).float().mean() > 0.3
