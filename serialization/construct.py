"""Builds the networks of other programs from their layers, which `chain` has put in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from serialization.chain import ForeignError, Layer, Step
from serialization.strides import SIDES, Kernel, Manner, Size, settle

SLOPE = 0.2  # of leaky ReLU, section 4 of the paper
ACTIVATIONS: dict[str, float | type[nn.Module]] = {  # a leaky ReLU's slope, or what is none
    "relu": nn.ReLU,
    "leaky_relu": SLOPE,
    "leaky_relu_0.01": 0.01,
    "leaky_relu_0.1": 0.1,
    "leaky_relu_0.3": 0.3,
    "elu": nn.ELU,
    "selu": nn.SELU,
}
ACTIVATION_LAYERS = (nn.LeakyReLU, nn.ReLU, nn.ELU, nn.SELU)  # their layers
MOST_VALUES = 1 << 22  # of an image's largest map: 1 GB for a batch


@dataclass(frozen=True)
class Habits:
    """What no shape tells of a generator, as most are.

    Args:
        activation: one of ACTIVATIONS.
        norm_last: batch norm comes after the activation.
        bare_start: no activation stands between the linear layer and the first convolution.
        eps: of the convolutions' batch norms. `BatchNorm2d(64, 0.8)`, meant for the momentum, is
            as common as it is wrong.
    """

    activation: str = "relu"
    norm_last: bool = False
    bare_start: bool = False
    eps: float = 1e-5


def build_generator(chain: list[Step], habits: Habits, image_size: Size | None) -> nn.Sequential:
    """Build a generator: `input` gives latents the shape that `main`, a flat chain, begins with."""
    linears = [step for step in chain if step.is_linear]
    kernels = chain[len(linears) :]
    channels = kernels[-1].gives
    starts = _rectangles(linears[-1].gives // kernels[0].takes) if linears else [(1, 1)]
    rooms = [_room(*pair) for pair in pairwise(chain)][-len(kernels) :]
    if linears:  # an activation, or what upsamples
        rooms[0] = None if rooms[0] == 1 else rooms[0]
    else:
        rooms.insert(0, None)
    manners, maps = _settled(kernels, starts, channels, image_size, rooms=rooms)
    kind = ACTIVATIONS[habits.activation]

    def activate() -> nn.Module:
        return nn.LeakyReLU(kind) if isinstance(kind, float) else kind()

    layers: list[nn.Module] = []
    for step in linears:
        is_last = step is linears[-1]
        bare = habits.bare_start or _room(step, kernels[0]) == manners[0].upsample - 1
        active = [] if is_last and bare else [activate()]
        reshape = [nn.Unflatten(1, (kernels[0].takes, *maps[0]))] * is_last
        layers.append(_linear(step))
        if step.norm is None or step.norm.shape[0] == step.gives:
            norm = [_norm(step.norm, nn.BatchNorm1d)] if step.norm else []
            layers += _in_order(step, [*norm, *reshape], active, habits)
        else:
            layers += [*reshape, _norm(step.norm), *active]
    for step, manner in zip(kernels, manners, strict=True):
        layers += [nn.Upsample(scale_factor=2)] * (manner.upsample == 2)
        layers.append(_convolution(step, manner))
        norm = [_norm(step.norm, eps=habits.eps)] if step.norm else []
        if step is kernels[-1]:
            layers += [*norm, nn.Tanh()]
        else:
            layers += _in_order(step, norm, [activate()], habits)
    z_dim = chain[0].takes
    z_shape = nn.Sequential(nn.Flatten(), *([] if linears else [nn.Unflatten(1, (z_dim, 1, 1))]))
    network = nn.Sequential()
    network.add_module("input", z_shape)
    network.add_module("main", nn.Sequential(*layers))
    network.z_dim, network.channels, network.image_size = z_dim, channels, maps[-1]
    return network.eval()


def build_discriminator(chain: list[Step], image_size: Size | None) -> nn.Sequential:
    """Build a discriminator: convolutions with their activations, and last what gives the logit."""
    linears = [step for step in chain if step.is_linear]
    kernels = chain[: len(chain) - len(linears)]
    channels = kernels[0].takes
    starts = _rectangles(linears[0].takes // kernels[-1].gives) if linears else [(1, 1)]
    manners, maps = _settled(kernels[::-1], starts, channels, image_size, backwards=True)
    layers: list[nn.Module] = []
    for step, manner in zip(kernels, manners[::-1], strict=True):
        layers.append(_convolution(step, manner))
        norm = [_norm(step.norm)] if step.norm else []
        layers += _in_order(step, norm, [nn.LeakyReLU(SLOPE)])
    if linears:
        head: list[nn.Module] = [nn.Flatten()]
        for step in linears:
            norm = [_norm(step.norm, nn.BatchNorm1d)] if step.norm else []
            active = [nn.LeakyReLU(SLOPE)] * (step is not linears[-1])
            head += [_linear(step), *_in_order(step, norm, active)]
        layers.append(nn.Sequential(*head))
    else:
        *layers, logit, _ = layers
        layers.append(logit)
    network = nn.Sequential(*layers)
    network.channels, network.image_size = channels, maps[-1]
    return network.eval()


def _settled(
    kernels: list[Step],
    starts: list[Size],
    channels: int,
    image_size: Size | None,
    backwards: bool = False,
    rooms: Sequence[int | None] = (),
) -> tuple[list[Manner], list[Size]]:
    """Find strides, see `strides.settle`, and refuse maps that no memory would hold.

    Raises:
        ForeignError: there are none, or only with such maps.
    """
    shapes = [Kernel(step.layer.shape[2:], step.transposed or backwards) for step in kernels]
    settled = settle(shapes, starts, channels, image_size, backwards, rooms)
    if settled is None:
        sizes = ", ".join(f"{height}x{width}" for (height, width), _ in shapes)
        wanted = "{}x{}".format(*image_size) if image_size else f"{SIDES[0]} to {SIDES[-1]}"
        verb = "take" if backwards else "draw"
        raise ForeignError(f"can't {verb} {wanted} pixels: its kernels are {sizes}")
    for step, (before, after) in zip(kernels, pairwise(settled[1]), strict=True):
        near, far = (step.gives, step.takes) if backwards else (step.takes, step.gives)
        values = max(near * prod(before), far * prod(after))
        if values > MOST_VALUES:
            raise ForeignError(f"has maps of {values:,} values, more than a DCGAN")
    return settled


def _rectangles(area: int) -> list[Size]:
    """Return heights and widths of a map of so many values, the squarest first."""
    sides = [side for side in range(1, min(area, SIDES[-1]) + 1) if area % side == 0]
    sizes = [(side, area // side) for side in sides if area // side <= SIDES[-1]]
    return sorted(sizes, key=lambda size: (abs(size[0] - size[1]), size))


def _between(before: Layer, after: Layer) -> int | None:
    """Count the layers without weights between two, if both have numbers in one nn.Sequential."""
    names = [layer.name.rpartition(".") for layer in (before, after)]
    if names[0][0] != names[1][0] or not all(name[2].isdecimal() for name in names):
        return None
    return int(names[1][2]) - int(names[0][2]) - 1


def _room(step: Step, after: Step) -> int | None:
    """Count what may be activations and upsampling between two steps, as `_between`."""
    is_flat = step.norm is None or step.norm.shape[0] == step.gives
    reshapes = step.is_linear and is_flat and not after.is_linear
    count = _between(step.norm or step.layer, after.layer)
    return count if count is None else count - reshapes


def _in_order(
    step: Step, norm: list[nn.Module], active: list[nn.Module], habits: Habits | None = None
) -> list[nn.Module]:
    """Put a step's batch norm before its activation, or after where numbers or `habits` say so."""
    count = step.norm and _between(step.layer, step.norm)
    last = bool(count) if count is not None else habits is not None and habits.norm_last
    return [*active, *norm] if last else [*norm, *active]


def _convolution(step: Step, manner: Manner) -> nn.Module:
    kind: Callable[..., nn.Module] = nn.ConvTranspose2d if step.transposed else nn.Conv2d
    more = {"output_padding": manner.output_padding} if step.transposed else {}
    size, bias = step.layer.shape[2:], "bias" in step.layer.tensors
    with torch.device("meta"):
        layer = kind(step.takes, step.gives, size, manner.stride, manner.padding, bias=bias, **more)
    return _filled(layer, step.layer, weight=_weight(step.layer, step.transposed))


def _linear(step: Step) -> nn.Module:
    with torch.device("meta"):
        layer = nn.Linear(step.takes, step.gives, bias="bias" in step.layer.tensors)
    return _filled(layer, step.layer, weight=_weight(step.layer))


def _norm(norm: Layer, kind: type[nn.Module] = nn.BatchNorm2d, eps: float = 1e-5) -> nn.Module:
    with torch.device("meta"):
        layer = kind(norm.shape[0], eps, affine="weight" in norm.tensors)
    return _filled(layer, norm, num_batches_tracked=torch.tensor(0))


def _filled(module: nn.Module, layer: Layer, **more: Tensor) -> nn.Module:
    """Put a layer's tensors in a module, as 32-bit floats.

    Raises:
        ForeignError: they are not all there, or of other shapes.
    """
    tensors = {**more, **layer.tensors}
    state = {}
    for name, expected in module.state_dict().items():
        if name not in tensors or tensors[name].shape != expected.shape:
            raise ForeignError(f"has a layer {layer.name!r} whose {name} is missing or misshapen")
        state[name] = tensors[name].to(expected.dtype, copy=True).contiguous()
    module.load_state_dict(state, assign=True)
    return module


def _weight(layer: Layer, transposed: bool = False) -> Tensor:
    """Return a layer's weight, also where spectral or weight norm keeps it in parts.

    Raises:
        ForeignError: a part is missing, or does not fit.
    """
    tensors = {name: tensor.float() for name, tensor in layer.tensors.items()}
    if "weight" in tensors:
        return tensors["weight"]
    get, prefix = tensors.get, "parametrizations.weight."
    direction, length = get("weight_v"), get("weight_g")
    if length is None:
        direction, length = get(f"{prefix}original1"), get(f"{prefix}original0")
    try:
        if length is not None:
            axes = [axis for axis, extent in enumerate(length.shape) if extent == 1]
            return direction * (
                length / torch.linalg.vector_norm(direction, dim=axes, keepdim=True)
            )
        weight = get("weight_orig", get(f"{prefix}original"))
        u, v = get("weight_u", get(f"{prefix}0._u")), get("weight_v", get(f"{prefix}0._v"))
        matrix = (weight.transpose(0, 1) if transposed else weight).flatten(1)
        return weight / torch.dot(u, matrix @ v)
    except (AttributeError, IndexError, RuntimeError, TypeError) as error:
        raise ForeignError(f"has a layer {layer.name!r} whose weight is in odd parts") from error
