"""Filters of both networks: what excites them, and images without some: section 6 of the paper.

Forward hooks on the activations see a network's maps, whatever its other layers are.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterable, Iterator

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
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two lie outside


def activations_of(network: nn.Module) -> list[nn.Module]:
    """Return the activations of hidden maps, from the network's input on."""
    found, is_map = [], True
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Unflatten):
            is_map = isinstance(layer, nn.Unflatten)
        elif is_map and isinstance(layer, ACTIVATION_LAYERS):
            found.append(layer)
    return found


# Figure 5: what excites the discriminator's filters -----------------------------------------------


def last_maps(discriminator: nn.Module, x: Tensor) -> Tensor:
    """Compute the activations (N, D, h, w) of the last convolution but the logit's."""
    maps = []
    last = activations_of(discriminator)[-1]
    with last.register_forward_hook(lambda layer, inputs, output: maps.append(output)):
        discriminator(x)
    return maps[0]


def in_batches(images: np.ndarray, network: nn.Module) -> Iterator[Tensor]:
    """Yield images (N, H, W, C) uint8 in [-1, 1], on the network's device, with a progress bar."""
    device = next(network.parameters()).device
    with tqdm(total=len(images), unit="image", disable=None, leave=False) as bar:
        for batch in torch.from_numpy(images).split(GENERATE_BATCH):
            yield to_tensor(batch.to(device))
            bar.update(len(batch))


@torch.no_grad()
def strongest(discriminator: nn.Module, images: np.ndarray, filters: int, shown: int) -> np.ndarray:
    """Find the images (N, H, W, C) uint8 that most excite each of the first filters.

    Those are filters of the last convolution of `discriminator`, which is in eval mode.

    Returns:
        Rows of `images`, (filters, shown), the strongest activation anywhere first; fewer if there
        are fewer images.

    Raises:
        ValueError: there are not so many filters.
    """
    strengths = []
    for x in in_batches(images, discriminator):
        maps = last_maps(discriminator, x)
        if maps.shape[1] < filters:
            raise ValueError(f"the last convolution has {maps.shape[1]}")
        strengths.append(maps[:, :filters].amax((2, 3)).cpu())
    order = torch.cat(strengths).argsort(dim=0, descending=True, stable=True)
    return order[:shown].T.numpy()


def guided_gradient(discriminator: nn.Module, x: Tensor, index: int) -> Tensor:
    """Compute what in images x (N, C, H, W) in [-1, 1] excites one filter of the last convolution.

    Guided backpropagation (Springenberg et al. 2014, arXiv 1412.6806) from the place (one of
    h x w) of its strongest activation: the gradient (N, C, H, W) of that, of which each activation
    on the way lets through only what is positive, and only where it is itself positive. They are
    leaky in this network: their values leak below 0 as they always do, their gradients not. So
    what lies outside the place's receptive field is 0, as all is if no activation is positive.

    `discriminator` is in eval mode.
    """

    def guide(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        positive = output > 0
        output.register_hook(lambda gradient: gradient.clamp(min=0) * positive)

    x = x.detach().to(next(discriminator.parameters()).device).requires_grad_()
    with contextlib.ExitStack() as hooks:
        for layer in activations_of(discriminator):
            hooks.enter_context(layer.register_forward_hook(guide))
        maps = last_maps(discriminator, x)
    (gradient,) = torch.autograd.grad(maps[:, index].flatten(1).max(1).values.sum(), x)
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


# Figure 6: images without some of the generator's filters -----------------------------------------


def read_boxes(text: str, image_size: tuple[int, int]) -> list[tuple[str, Box]]:
    """Parse "3:10,12,30,28; 17,22:5,5,20,20" into lists of latents, each with its box.

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
        left, top, right, bottom = map(int, match.groups()[1:])
        if not (left < right <= width and top < bottom <= height):
            raise SettingsError(
                f"--boxes {part.strip()}: must be left,top,right,bottom in an image {width} "
                f"pixels wide and {height} high"
            )
        boxes.append((match[1], (left, top, right, bottom)))
    return boxes


def mark(boxes: Iterable[Iterable[Box]], image_size: tuple[int, int]) -> Tensor:
    """Return the pixels (N, H, W) inside any of the boxes of each of N images, as bool."""
    boxes = list(boxes)
    marked = torch.zeros(len(boxes), *image_size, dtype=torch.bool)
    for pixels, within in zip(marked, boxes, strict=True):
        for left, top, right, bottom in within:
            pixels[top:bottom, left:right] = True
    return marked


def dim(images: np.ndarray, marked: Tensor) -> np.ndarray:
    """Return images (N, H, W, C) uint8 with colours halved where `marked` (N, H, W) is false."""
    dimmed = images.copy()
    dimmed[..., :3][~marked.numpy()] //= 2
    return dimmed


def maps_of(generator: nn.Module, z: Tensor, layer: int) -> Tensor:
    """Compute the maps (N, D, h, w), on the CPU, of one hidden layer for latents z (N, Z).

    Layer 1 is the first after z, with the smallest maps. After the activation, in eval mode.
    """
    maps = []
    activation = activations_of(generator)[layer - 1]
    with activation.register_forward_hook(lambda *call: maps.append(call[2].cpu().clone())):
        generate(generator, z)
    return torch.cat(maps)[: len(z)]  # without the rows that `generate` fills its batches with


def find_filters(maps: Tensor, marked: Tensor, seed: int = 0) -> np.ndarray:
    """Compute the weights (D,) by which a layer's filters tell marked places from others.

    Section 6.2 of the paper: a logistic regression on the activations at each place. Places that
    a mark touches are positive; as many random places of the same images that none touches are
    negative. Activations are divided by their deviation first, which leaves a weight its sign; a
    filter that is the same everywhere gets 0.

    Args:
        maps: (N, D, h, w), see `maps_of`.
        marked: (N, H, W) bool, the pixels that the user marks.
        seed: of the places outside.

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
    statistics move by what the lack of them changes, as if the network used statistics of the
    batch, like the DCGAN authors'; or else all images turn grey. If no filter is dropped, the
    copy generates the same images, to the last bit.
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
    norms = (
        [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
        for network in (lacking, before, after)
    )
    for norm, old, new in zip(*norms, strict=True):
        norm.running_mean += new.running_mean - old.running_mean
        norm.running_var *= (new.running_var + norm.eps) / (old.running_var + norm.eps)
    return lacking
