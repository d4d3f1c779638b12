"""What the filters of both networks stand for: section 6 of the paper, figures 5 and 6.

Works by forward hooks on a network's activations, whatever its other layers are.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dataset import to_image, to_tensor
from models import GENERATE_BATCH, generate, random_latents, recalibrate
from serialization.construct import ACTIVATION_LAYERS
from utils import SettingsError, random_at

CALIBRATING = 256  # latents that batch norm takes its statistics from


class Box(NamedTuple):
    """A part of an image, in pixels from its left and its top; right and bottom lie outside."""

    left: int
    top: int
    right: int
    bottom: int


def activations_of(network: nn.Module) -> list[nn.Module]:
    """Return the activations of hidden maps, from the network's input on."""
    found, is_map = [], True
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Unflatten):
            is_map = isinstance(layer, nn.Unflatten)
        elif is_map and isinstance(layer, ACTIVATION_LAYERS):
            found.append(layer)
    return found


@contextlib.contextmanager
def hooked(layers: Sequence[nn.Module], hook: Callable) -> Iterator[None]:
    """Let `hook` see, and change, what the layers give as long as the block lasts."""
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# What the discriminator's filters see -------------------------------------------------------------


def last_maps(discriminator: nn.Module, x: Tensor) -> Tensor:
    """Return the activations (N, D, h, w) of the last convolution but the logit's."""
    collected = []
    with hooked(activations_of(discriminator)[-1:], lambda *called: collected.append(called[2])):
        discriminator(x)
    return collected[0]


def in_batches(images: np.ndarray, network: nn.Module) -> Iterator[Tensor]:
    """Yield images (N, H, W, C) uint8 in [-1, 1], on the network's device, showing the progress."""
    device = next(network.parameters()).device
    with tqdm(total=len(images), unit="image", disable=None, leave=False) as bar:
        for first in range(0, len(images), GENERATE_BATCH):
            batch = torch.from_numpy(images[first : first + GENERATE_BATCH]).to(device)
            yield to_tensor(batch)
            bar.update(len(batch))


@torch.no_grad()
def strongest(discriminator: nn.Module, images: np.ndarray, filters: int, shown: int) -> np.ndarray:
    """Find the images that the first filters of the last convolution answer most.

    Gives rows of `images` (N, H, W, C) uint8, as (filters, shown), for each filter the image with
    the strongest answer anywhere first; fewer if there are fewer images. `discriminator` is in
    eval mode.

    Raises:
        ValueError: there are not so many filters.
    """
    answers = []
    for x in in_batches(images, discriminator):
        maps = last_maps(discriminator, x)
        if maps.shape[1] < filters:
            raise ValueError(f"the last convolution has {maps.shape[1]}")
        answers.append(maps[:, :filters].amax((2, 3)).cpu())
    order = torch.cat(answers).argsort(dim=0, descending=True, stable=True)
    return order[:shown].T.numpy()


def guided_gradient(discriminator: nn.Module, x: Tensor, index: int) -> Tensor:
    """Return what in images x (N, C, H, W) in [-1, 1] excites one filter of the last convolution.

    Guided backpropagation (Springenberg et al. 2014, arXiv 1412.6806) from the place (one of
    h x w) where it answers most: the gradient (N, C, H, W) of that answer, of which each activation
    on the way lets through only what is positive, and only where it is itself positive. They are
    leaky in this network: their answer leaks below 0 as it always does, their gradient not. So
    what lies outside the place's receptive field is 0, as all is if no answer is positive.

    `discriminator` is in eval mode.
    """

    def guide(layer: nn.Module, given: tuple[Tensor], answer: Tensor) -> None:
        positive = answer > 0
        answer.register_hook(lambda gradient: gradient.clamp(min=0) * positive)

    x = x.detach().to(next(discriminator.parameters()).device).requires_grad_()
    with hooked(activations_of(discriminator), guide):
        answers = last_maps(discriminator, x)[:, index].flatten(1)
    (gradient,) = torch.autograd.grad(answers.max(1).values.sum(), x)
    return gradient


def as_image(gradient: Tensor) -> np.ndarray:
    """Convert gradients (N, C, H, W) into uint8 images (N, H, W, C), on which 0 is grey.

    Each has the contrast at which one in 200 of its values is clipped. Alpha, whose gradient no eye
    could tell from the colours', becomes opaque.
    """
    colours = gradient[:, :3] if gradient.shape[1] == 4 else gradient
    sizes = colours.abs().flatten(1)
    most = sizes.kthvalue(round(0.995 * sizes.shape[1])).values[:, None, None, None]
    x = (colours / most.clamp(min=torch.finfo(most.dtype).tiny)).clamp(-1, 1)
    if gradient.shape[1] == 4:
        x = F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)
    return to_image(x)


# What the generator's filters draw ----------------------------------------------------------------


def read_boxes(text: str, image_size: tuple[int, int]) -> list[tuple[str, Box]]:
    """Read "3:10,12,30,28; 17,22:5,5,20,20" into lists of latents, each with its box.

    Raises:
        SettingsError: it is not written like that, or a box is not within image_size (height,
            width) in pixels.
    """
    height, width = image_size
    boxes = []
    for part in text.split(";"):
        match = re.fullmatch(r"\s*(.+?)\s*:\s*(\d{1,9})" + r"\s*,\s*(\d{1,9})" * 3 + r"\s*", part)
        if match is None:
            raise SettingsError(f"--boxes {text}: write it like 3:10,12,30,28; 17:8,10,26,30")
        box = Box(*map(int, match.groups()[1:]))
        if not (box.left < box.right <= width and box.top < box.bottom <= height):
            raise SettingsError(
                f"--boxes {part.strip()}: must be left,top,right,bottom in an image {width} "
                f"pixels wide and {height} high"
            )
        boxes.append((match[1], box))
    return boxes


def mark(boxes: Iterable[Iterable[Box]], image_size: tuple[int, int]) -> Tensor:
    """Return the pixels (N, H, W) inside of any of the boxes of each of N images, as bool."""
    boxes = list(boxes)
    marked = torch.zeros(len(boxes), *image_size, dtype=torch.bool)
    for pixels, within in zip(marked, boxes, strict=True):
        for left, top, right, bottom in within:
            pixels[top:bottom, left:right] = True
    return marked


def dim(images: np.ndarray, marked: Tensor) -> np.ndarray:
    """Return images (N, H, W, C) uint8 with the colours halved but where they are `marked`."""
    dimmed = images.copy()
    colours = dimmed[..., :3]
    colours[~marked.numpy()] //= 2
    return dimmed


def maps_of(generator: nn.Module, z: Tensor, layer: int) -> Tensor:
    """Return the maps (N, D, h, w), on the CPU, of one hidden layer for latents z (N, Z).

    Layer 1 is the first after z, with the smallest maps. After the activation, in eval mode.
    """
    collected = []
    activation = activations_of(generator)[layer - 1]
    with hooked([activation], lambda *called: collected.append(called[2].cpu().clone())):
        generate(generator, z)
    return torch.cat(collected)[: len(z)]  # without the rows that `draw` fills its batches with


def find_filters(maps: Tensor, marked: Tensor, seed: int = 0) -> np.ndarray:
    """Weigh the filters of a layer by how they tell marked places from others: weights (D,).

    Section 6.2 of the paper: a logistic regression on the activations at each place. Places that
    a mark touches are positive; as many places of the same images that none touches, drawn at
    random by `seed`, are negative. Activations are divided by their deviation first, which leaves
    a weight its sign; a filter that is the same everywhere gets 0.

    Args:
        maps: (N, D, h, w), see `maps_of`.
        marked: (N, H, W) bool, the pixels that the user marks.

    Raises:
        ValueError: nothing is marked, or there is no place outside.
    """
    from sklearn.linear_model import LogisticRegression  # takes longer than all else to import

    count, depth, height, width = maps.shape
    touched = F.adaptive_max_pool2d(marked[:, None].float(), (height, width)).flatten(1) > 0
    activations = maps.permute(0, 2, 3, 1).reshape(count, height * width, depth)
    places, classes = [], []
    for i, (inside, rows) in enumerate(zip(touched, activations, strict=True)):
        outside = torch.from_numpy(random_at(seed, "outside", i).permutation(len(rows)))
        outside = outside[~inside[outside]][: inside.sum()]
        places += [rows[inside], rows[outside]]
        classes += [1] * int(inside.sum()) + [0] * len(outside)
    if len(set(classes)) < 2:
        raise ValueError("there must be places inside of what is marked, and outside")
    x = torch.cat(places).double()
    deviation = x.std(0)
    x = (x - x.mean(0)) / deviation.where(deviation > 0, torch.inf)
    return LogisticRegression(max_iter=1000).fit(x.numpy(), classes).coef_[0]


def without(generator: nn.Module, layer: int, filters: np.ndarray) -> nn.Module:
    """Copy a generator, in eval mode, with some filters of a hidden layer at 0 everywhere.

    `filters` (D,) is true for those to drop, after the activation of `layer`. Batch norm's running
    statistics move by what the lack of them changes, as if the network drew with statistics of the
    batch, like the DCGAN authors'; or else all images turn grey. If no filter is dropped, the
    copy draws the same as the generator, to the last bit.
    """
    example = next(generator.parameters())
    kept = torch.from_numpy(~np.asarray(filters, bool)).to(example)[:, None, None]
    lacking = copy.deepcopy(generator).eval()
    activations_of(lacking)[layer - 1].register_forward_hook(lambda _, z, maps: maps * kept)

    random = random_at(0, "calibrating", 0)
    z = random_latents(random, CALIBRATING, generator.z_dim, generator.z_dist).to(example.device)
    before, after = copy.deepcopy(generator), copy.deepcopy(lacking)
    for network in (before, after):
        recalibrate(network, z.split(GENERATE_BATCH))
    for norm, old, new in zip(*map(_norms, (lacking, before, after)), strict=True):
        norm.running_mean += new.running_mean - old.running_mean
        norm.running_var *= (new.running_var + norm.eps) / (old.running_var + norm.eps)
    return lacking


def _norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
