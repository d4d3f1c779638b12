"""What the layers of other programs' networks are, as shapes and order tell it.

A DCGAN is a chain: each layer takes the channels that the one before gives. So the weights alone
tell how many dimensions z has, how wide each map is, what is normalised and what ends in an image,
however the layers are called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from torch import Tensor

KINDS = ("generator", "discriminator")
IMAGES = (1, 3, 4)  # channels of an image
MOST_LAYERS, MOST_TRIES = 64, 5_000  # what a file may ask to be looked at
LONGEST = 200  # letters of a name, whose numbers are read

PARAMETER = re.compile(
    r"(?:(.*)\.)?(weight|bias|running_mean|running_var|num_batches_tracked|weight_(?:orig|[uvg])"
    r"|parametrizations\.weight\.(?:original[01]?|0\._[uv]))"
)


class ForeignError(ValueError):
    """No network of the kind that was asked for; the message says what was found, in one line."""


@dataclass(frozen=True)
class Layer:
    """The tensors of one layer, by the names that PyTorch gives them."""

    name: str
    tensors: dict[str, Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its weight, or of batch norm's mean."""
        names = ("weight", "weight_orig", "weight_v", "parametrizations.weight.original",
                 "parametrizations.weight.original1", "running_mean")  # fmt: skip
        return next((tuple(self.tensors[n].shape) for n in names if n in self.tensors), ())

    @property
    def is_norm(self) -> bool:
        return "running_mean" in self.tensors


@dataclass(frozen=True)
class Step:
    """A layer in its place in a chain: the channels it takes and gives, and its batch norm."""

    layer: Layer
    norm: Layer | None
    takes: int
    gives: int
    transposed: bool = False

    @property
    def is_linear(self) -> bool:
        return len(self.layer.shape) == 2


def understand(state: dict[str, Tensor]) -> tuple[str, list[Step]]:
    """Return which kind of network a state dict is, with its layers in order.

    Raises:
        ForeignError: it is no chain that begins and ends as a DCGAN does.
    """
    layers = _layers(state)
    orders = [layers, sorted(layers, key=_natural), sorted(layers, key=_numbers)]
    names = [layer.name for layer in layers]
    for order in orders[names == sorted(names) :]:  # sorted by letters, they have lost their order
        blocks = _blocks(order)
        for kind in KINDS if blocks else ():
            chain = next(_chains(blocks, kind), None)
            if chain:
                return kind, chain
    # Names do not tell the order: whatever fits. A generator read backwards looks like a
    # discriminator, but for the one logit at its end.
    norms = [layer for layer in orders[2] if layer.is_norm]
    blocks = [(layer, None) for layer in orders[1] if not layer.is_norm]
    for kind in reversed(KINDS):
        for chain in _chains(blocks, kind, free=True):
            chain = _with_norms(chain, norms)
            if chain:
                return kind, chain
    raise ForeignError(_described(layers))


def _layers(state: dict[str, Tensor]) -> list[Layer]:
    """Group tensors into layers, in the file's order.

    Raises:
        ForeignError: there are some that no layer of a DCGAN has.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = PARAMETER.fullmatch(name)
        if match is None or len(name) > LONGEST:
            name, shape = name[:LONGEST], tuple(tensor.shape)
            raise ForeignError(f"has {name!r} of shape {shape}, as no DCGAN does")
        groups.setdefault(match[1] or "", {})[match[2]] = tensor
    layers = [Layer(name, tensors) for name, tensors in groups.items()]
    for layer in layers:
        if re.search("(?i)emb", layer.name) and len(layer.shape) == 2:
            raise ForeignError(f"is conditional: {layer.name!r} {layer.shape} is an embedding")
        if len(layer.shape) not in ((1,) if layer.is_norm else (2, 4)) or 0 in layer.shape:
            raise ForeignError(
                f"has {layer.name!r} of shape {layer.shape}, which is no convolution, linear layer "
                "or batch norm with running statistics"
            )
    if not any(len(layer.shape) == 4 for layer in layers):
        raise ForeignError(f"is a dense network: {len(layers)} layers, none of them a convolution")
    if len(layers) > MOST_LAYERS:
        raise ForeignError(f"has {len(layers)} layers, more than a DCGAN")
    return layers


def _described(layers: Sequence[Layer]) -> str:
    """Say why layers are no DCGAN."""
    weighted = [layer for layer in layers if not layer.is_norm]
    first, last = weighted[0], weighted[-1]
    inputs = first.shape[1]
    if len(last.shape) == 2 and last.shape[0] > 2 and inputs in IMAGES:
        return f"is a classifier: it ends in {last.shape[0]} outputs, {last.name!r} {last.shape}"
    if len(last.shape) == 4 and inputs in IMAGES and inputs in last.shape[:2]:
        return f"is an encoder-decoder: it begins and ends with images of {inputs} channels"
    shown = ", ".join(f"{layer.name!r} {layer.shape}" for layer in weighted[:3])
    return f"is no chain of layers as a DCGAN is: {len(weighted)} of them, such as {shown}"


def _natural(layer: Layer) -> list[tuple[int, str]]:
    """Order names as a person does, conv2 before conv10."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", layer.name)][:-1]


def _numbers(layer: Layer) -> tuple[list[int], bool]:
    """Order names by their numbers alone, and bn1 after conv1."""
    return [int(number) for number in re.findall(r"\d+", layer.name)], layer.is_norm


Block = tuple[Layer, Layer | None]  # a layer and the batch norm after it


def _blocks(layers: Sequence[Layer]) -> list[Block] | None:
    """Pair each layer with the batch norm that follows it; None where one follows no layer."""
    blocks: list[Block] = []
    for layer in layers:
        if not layer.is_norm:
            blocks.append((layer, None))
        elif blocks and blocks[-1][1] is None:
            blocks[-1] = blocks[-1][0], layer
        else:
            return None
    return blocks


def _chains(blocks: Sequence[Block], kind: str, free: bool = False) -> Iterator[list[Step]]:
    """Yield the chains of one kind that all blocks make, in their order, or `free` in any."""
    tries = 0

    def update_ema(left: Sequence[Block], chain: list[Step]) -> Iterator[list[Step]]:
        nonlocal tries
        tries += 1
        if tries > MOST_TRIES:
            return
        if not left:
            ends = IMAGES if kind == "generator" else (1, 2)
            if len(chain) > 2 and chain[-1].gives in ends:
                yield _settle_squares(chain)
            return
        for i, block in enumerate(left if free else left[:1]):
            for step in _fits(block, chain, kind):
                yield from update_ema([*left[:i], *left[i + 1 :]], [*chain, step])

    yield from update_ema(blocks, [])


def _fits(block: Block, chain: list[Step], kind: str) -> Iterator[Step]:
    """Yield the ways in which a block can come next in a chain."""
    (layer, norm), before = block, chain[-1] if chain else None
    rows, columns = layer.shape[:2]
    is_linear, was_linear = len(layer.shape) == 2, before is not None and before.is_linear
    if is_linear or kind == "discriminator":
        ways = [(columns, rows, False)]
    elif before is None:
        ways = [(rows, columns, True)]
    else:
        # Of a generator's convolutions, only those that are not transposed could be another's: they
        # keep the size, with odd kernels, and never widen.
        ways = [(rows, columns, True)]
        ways += [(columns, rows, False)] * (rows < columns and layer.shape[2] % 2 == 1)
    for takes, gives, transposed in ways:
        width = None if norm is None else norm.shape[0]
        reshaped = is_linear and kind == "generator"  # its norm may come after the reshaping
        if width is not None and width != gives and not (reshaped and gives % width == 0):
            continue
        step = Step(layer, norm, takes, gives, transposed)
        if before is None:
            if kind == "generator" or (takes in IMAGES and not is_linear):
                yield step
        elif was_linear and is_linear:
            if takes == before.gives:
                yield step
        elif was_linear:  # a generator's, whose values become a map
            norm_width = takes if before.norm is None else before.norm.shape[0]
            whole = before.gives % takes == 0 and norm_width in (takes, before.gives)
            if kind == "generator" and whole:
                yield step
        elif is_linear:  # a discriminator's, of all values of a map
            if kind == "discriminator" and takes % before.gives == 0:
                yield step
        elif takes == before.gives:
            yield step


def _settle_squares(chain: list[Step]) -> list[Step]:
    """Return whether layers with as many channels before as after are transposed: as their like."""
    settled = []
    for i, step in enumerate(chain):
        if i and step.transposed and step.takes == step.gives:
            kernel = step.layer.shape[2:]
            like = [
                s.transposed for s in chain if s.takes != s.gives and s.layer.shape[2:] == kernel
            ]
            step = replace(step, transposed=like[0] if like else kernel[0] % 2 == 0)
        settled.append(step)
    return settled


def _with_norms(chain: list[Step], norms: Sequence[Layer]) -> list[Step] | None:
    """Return each batch norm to the first layer left with as many channels; None if one is over."""
    left = list(norms)
    result = []
    for step, after in zip_longest(chain, chain[1:]):
        widths = (step.gives, after.takes) if after is not None else (step.gives,)
        norm = next((norm for norm in left if norm.shape[0] in widths), None)
        left = [one for one in left if one is not norm]
        result.append(replace(step, norm=norm))
    return None if left else result
