"""What the kernels of a DCGAN tell about its maps: the least unusual strides that fit together.

A file of weights has the size of every kernel, but neither stride nor padding. Few of them are in
use, though, layers of one network are alike, and few sizes of images are usual. Each of these
has a cost here, and the cheapest way from the smallest map to an image is taken.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

Size = tuple[int, int]  # height and width
SIDES = range(8, 513)  # of an image, in pixels
MOST_STEPS = 20_000  # of the search; a real network takes some hundreds
UNLIKE = 3  # cost of a second manner for kernels of one size
LONE = 15  # cost of one 5x5 among 4x4, but for what makes 96 pixels of 32
MIXED = 5  # cost of layers with padding beside layers without
LATE = 8  # cost of upsampling only after a layer of the same kernel that kept the size


class Kernel(NamedTuple):
    """A layer's kernel: height and width, and whether it is a transposed convolution's."""

    size: Size
    transposed: bool


class Manner(NamedTuple):
    """How a layer goes over its map: (height, width) of each, as PyTorch names them."""

    stride: Size
    padding: Size
    output_padding: Size = (0, 0)
    upsample: int = 1  # how many times larger its map is made first


def settle(
    kernels: Sequence[Kernel],
    first_maps: Sequence[Size],
    channels: int,
    image_size: Size | None = None,
    backwards: bool = False,
    rooms: Sequence[int | None] = (),
) -> tuple[list[Manner], list[Size]] | None:
    """Return the manner of each layer from the smallest map to an image, and the size of each map.

    With `backwards` they are a discriminator's convolutions, from its last to its first: each one
    leads from its output to its input as a transposed one does from input to output.

    Args:
        first_maps: sizes that the map before the first layer may have, the likeliest first.
        channels: of an image; most grey ones that are learnt from have 28x28 pixels.
        image_size: the size that it must have, if that is known.
        rooms: how many layers without weights are before each, where that is known.

    Returns:
        None if there is no way.
    """
    sizes = [kernel.size for kernel in kernels]
    is_lone = sizes.count((5, 5)) == 1 and sizes.count((4, 4)) == len(sizes) - 1
    lone = Kernel((5, 5), True) if is_lone else None
    # A way is its cost; which manner each layer has, so that of equally cheap ones the first listed
    # comes first; its maps and manners; and which manners kernels have in it.
    ways: list[tuple[int, tuple[int, ...], list[Size], list[Manner], frozenset]]
    ways = [(i, (i,), [size], [], frozenset()) for i, size in enumerate(first_maps)]
    seen = set()
    for _ in range(MOST_STEPS):
        if not ways:
            break
        cost, choices, maps, manners, used = heapq.heappop(ways)
        if len(choices) > len(kernels) + 1:  # the cost of its size is counted
            return manners, maps
        state = (len(manners), maps[-1], used)
        if state in seen:
            continue
        seen.add(state)
        if len(manners) == len(kernels):
            if image_size in (None, maps[-1]) and all(side in SIDES for side in maps[-1]):
                unusual = 0 if image_size else max(_oddness(side, channels) for side in maps[-1])
                heapq.heappush(ways, (cost + unusual, (*choices, 0), maps, manners, used))
            continue
        kernel = kernels[len(manners)]
        room = rooms[len(manners)] if rooms else None
        options = _manners(kernel, maps[-1] == (1, 1), backwards, room)
        for choice, (name, price, manner) in enumerate(options):
            size = _after(maps[-1], kernel, manner)
            if min(size) < 1 or max(size) > SIDES[-1]:
                continue
            mark, marks = (kernel, name), used
            if kernel == lone:
                price += LONE * (name != "padded, three times")
            if not kernel.transposed:
                marks = used | {mark} if room is None else used
                if name == "upsampled":  # first, not last, is usual
                    price *= mark not in used or room is not None
                    price += LATE * ((kernel, "padded, same") in used)
                    price += len(manners) + 1 == len(kernels) and room is None
            elif mark in used:
                price *= name == "bare"  # growing by a few pixels is no habit
            elif maps[-1] != (1, 1):
                marks = used | {mark}
                price += UNLIKE * any(other == kernel for other, _ in used)
                padded = {
                    label.startswith("padded")
                    for k, label in used
                    if k.transposed and max(k.size) > 2
                }
                mixed = max(kernel.size) > 2 and padded == {not name.startswith("padded")}
                price += MIXED * mixed
            way = (cost + price, (*choices, choice), [*maps, size], [*manners, manner], marks)
            heapq.heappush(ways, way)
    return None


def _manners(
    kernel: Kernel, on_a_point: bool, slack: bool, room: int | None
) -> Iterator[tuple[str, int, Manner]]:
    """Yield the manners in use for a kernel: a name, what it costs, and the manner.

    `on_a_point` is on a map of 1x1, which a transposed convolution turns into its whole kernel.
    With `slack` a convolution may leave a pixel at the end of its input unseen. Before it there is
    `room` for so many layers without weights: an activation, and one that upsamples.
    """
    (height, width), transposed = kernel
    large, odd = max(kernel.size), height % 2
    middle = (height - 1) // 2, (width - 1) // 2
    if not transposed:
        if odd and large > 1 and room != 0 and not on_a_point:
            price = 4 if room is None else 7 if room == 1 else 0
            yield "upsampled", price, Manner((1, 1), middle, upsample=2)
        yield "padded, same", 3 * (room is not None and room > 1), Manner((1, 1), middle)
        yield "bare", 3, Manner((1, 1), (0, 0))
        return
    if on_a_point:
        yield "bare", 0, Manner((1, 1), (0, 0))
        if slack:
            yield "bare, slack", 1, Manner((2, 2), (0, 0), (1, 1))
        yield "padded, twice", 9, Manner((2, 2), middle, (odd, odd))
        return
    if large == 1:
        yield "same", 0, Manner((1, 1), (0, 0))
        yield "cropped", 2, Manner((1, 1), (2, 2))  # 32 to 28
        return
    if odd:
        # 3x3 most often keeps the size, and does so last; 5x5 doubles it, or keeps it at first.
        same = "padded, same", 1, Manner((1, 1), middle)
        twice = "padded, twice", 2 * (large == 3), Manner((2, 2), middle, (1, 1))
        yield from (twice, same) if large == 3 else (same, twice)
        yield "padded, one less", 2, Manner((2, 2), middle)
        if large == 5:
            yield "padded, three times", 6, Manner((3, 3), (1, 1))
    else:
        for more in product((0, 1), repeat=2):
            yield f"padded, twice {more}", 4 * max(more), Manner((2, 2), middle, more)
        if large > 2:
            yield "padded, four times", 12, Manner((4, 4), ((height - 4) // 2, (width - 4) // 2))
    if large > 2:
        yield "bare, twice", 1, Manner((2, 2), (0, 0))
        if slack:
            yield "bare, twice", 1, Manner((2, 2), (0, 0), (1, 1))
        yield "bare", 2, Manner((1, 1), (0, 0))


def _after(size: Size, kernel: Kernel, manner: Manner) -> Size:
    """Return the size of a map (height, width) after a layer."""
    sides = []
    for side, extent, stride, padding, more in zip(size, kernel.size, *manner[:3], strict=True):
        if padding < 0:
            return 0, 0
        if kernel.transposed:
            sides.append((side - 1) * stride - 2 * padding + extent + more)
        else:
            sides.append(manner.upsample * side + 2 * padding - extent + 1)
    return sides[0], sides[1]


def _oddness(side: int, channels: int) -> int:
    """Return how unusual an image's side in pixels is."""
    if side == 28:
        return 8 * (channels != 1)
    if side in (32, 64, 128, 256, 512):
        return 3 * (channels == 1)
    return 12 if side < 16 else 6 if side == 16 else 8 if side % 4 == 0 else 10
