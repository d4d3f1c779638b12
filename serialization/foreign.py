"""Opens the networks of other DCGAN programs, whatever lies around them in a file.

`chain` tells what the layers are, `strides` how they go over their maps, and `remembered` which
activations and latents a generator was trained with. What is left takes the common choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from serialization.chain import ForeignError, Step, understand
from serialization.checkpoint import Blank
from serialization.construct import ACTIVATIONS, SLOPE, Habits, build_discriminator, build_generator
from serialization.remembered import misfit
from serialization.strides import Size

DEEPEST = 8  # nests that are looked into
EXPLAINED = 0.1  # nats, below which batch norm's averages are those of a generator's maps
CLEARLY = 0.8  # part of the usual ones' misfit that others must stay below, to be chosen

WRAPPERS = re.compile(r"(^|\.)(?:(?:_orig_mod|module)\.)+")  # of torch.compile, DataParallel, DDP
NETWORK = re.compile(  # what a part of a flat file is called that is a network by itself
    r"(?i)(?:.*_)?(?:net_?|model_?)?(?:g|d|gen|dis|disc|generator|discriminator|critic)"
    r"(?:_?(?:net|model|network|ema|avg))?"
)
AVERAGE = re.compile(r"(?i)ema|average|avg|shadow")


def open_network(
    contents: Any,
    kind: str,
    average: bool = False,
    activation: str | None = None,
    image_size: Size | None = None,
    z_dist: str | None = None,
) -> tuple[nn.Sequential, str]:
    """Return the network of a `kind` of KINDS that lies in what a file holds, and a line about it.

    A generator has `z_dim`, `z_dist`, `channels` and `image_size`, and maps latents (N, Z) to
    images (N, C, H, W). A discriminator has the last two, and maps images to logits (N, 1) or
    (N, 1, 1, 1). The line says what it is, and what was remembered or assumed.

    Args:
        contents: state dicts in any nest of dictionaries and lists.
        average: take a moving average of the weights, if one lies there too.
        activation: of a generator, one of ACTIVATIONS; else what batch norm remembers.
        image_size: (height, width) of its images; else the likeliest that the kernels give.
        z_dist: the distribution of its latents, "normal" or "uniform"; else the same.

    Raises:
        ForeignError: there is none, or it does not fit what is asked for.
    """
    reasons: list[tuple[int, str]] = []
    networks = [
        network
        for place, state in _states(contents)
        for network in _networks(place, state, reasons)
    ]
    found = [(place, chain) for place, its_kind, chain in networks if its_kind == kind]
    if not found and networks:
        raise ForeignError(f"holds a {networks[0][1]}, but no {kind}")
    if not found:
        raise ForeignError(max(reasons, key=lambda one: one[0], default=(0, "holds no weights"))[1])
    place, chain = next((one for one in found if bool(AVERAGE.search(one[0])) == average), found[0])
    _check(chain)
    if kind == "discriminator":
        network, notes = build_discriminator(chain, image_size), [f"leaky ReLU of {SLOPE} assumed"]
    else:
        network, notes = _likeliest(chain, activation, image_size, z_dist)
    height, width = network.image_size
    notes += [f"--image_size {height}x{width} assumed"] * (not image_size)
    widths = "-".join(str(step.gives) for step in chain[:-1])
    return network, (
        f"a foreign {kind}{f' under {place!r}' * bool(place)}, {chain[0].takes}-{widths}-"
        f"{chain[-1].gives}, {height}x{width} pixels; {', '.join(notes)}"
    )


def _likeliest(
    chain: list[Step], activation: str | None, image_size: Size | None, z_dist: str | None
) -> tuple[nn.Sequential, list[str]]:
    """Build a generator with the activation and latents that its batch norm remembers, or usual.

    Gives notes of what these are, and how that is known, beside it.
    """
    usual = Habits(activation or "relu"), z_dist or "normal"
    others: list[tuple[str, Sequence[Any]]] = [
        ("activation", () if activation else tuple(ACTIVATIONS)),
        ("norm_last", (False, True)),
        ("bare_start", (False, True) if chain[0].is_linear else ()),
        ("z_dist", () if z_dist else ("normal", "uniform")),
        ("eps", (1e-5, 0.8)),
    ]
    network = build_generator(chain, usual[0], image_size)
    best, least = usual, misfit(network, usual[1])
    rounds, before = 2 * (least < float("inf")), None  # a second, as each may hide another
    while rounds and before != best:
        rounds, before = rounds - 1, best
        for field, value in ((field, value) for field, values in others for value in values):
            habits, z = best
            if field == "z_dist":
                z = value
            else:
                habits = replace(habits, **{field: value})
            if (habits, z) == best:
                continue
            tried = build_generator(chain, habits, image_size)
            distance = misfit(tried, z)
            if distance < CLEARLY * least:
                network, best, least = tried, (habits, z), distance
    told = least < EXPLAINED
    if not told:
        best, network = usual, build_generator(chain, usual[0], image_size)
    habits, network.z_dist = best
    how = "as batch norm remembers" if told else "assumed"
    notes = [f"--activation {habits.activation} {how}"] * (not activation)
    notes += [f"--z_dist {network.z_dist} {how}"] * (not z_dist)
    notes += ["batch norm after it"] * habits.norm_last
    notes += ["none after the linear layer"] * habits.bare_start
    notes += [f"batch norm's eps {habits.eps}"] * (habits.eps != usual[0].eps)
    return network, [*notes, "tanh at the end assumed"]


def _check(chain: Sequence[Step]) -> None:
    """Refuse tensors that are no plain finite numbers, or that claim more than the file holds.

    Raises:
        ForeignError: naming the layer.
    """
    claimed, storages = 0, {}
    layers = [layer for step in chain for layer in (step.layer, step.norm) if layer is not None]
    for layer in layers:
        for tensor in layer.tensors.values():
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            claimed += tensor.numel() * tensor.element_size()
    if claimed > sum(storages.values()):
        raise ForeignError("holds less than the shapes of its weights say")
    for layer in layers:
        if not all(tensor.float().isfinite().all() for tensor in layer.tensors.values()):
            raise ForeignError(f"has a layer {layer.name!r} with numbers that are not finite")


def _states(contents: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield what may be state dicts in a nest, and where they lie; optimizers are left out."""
    seen: set[int] = set()

    def walk(value: Any, place: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if id(value) in seen or depth > DEEPEST:
            return
        seen.add(id(value))
        if isinstance(value, Blank):
            value = _of_module(value, seen) or value.state
        if not isinstance(value, Mapping | list | tuple):
            return
        if not isinstance(value, Mapping):
            value = dict(enumerate(value))
        if {"state", "param_groups"} <= value.keys():
            return
        tensors = {
            WRAPPERS.sub(r"\1", name): tensor
            for name, tensor in value.items()
            if isinstance(name, str) and isinstance(tensor, Tensor)
        }
        tensors.pop("n_averaged", None)  # torch's AveragedModel's
        if tensors:
            yield place, tensors
        for name, inner in value.items():
            yield from walk(inner, f"{place}.{name}" if place else str(name), depth + 1)

    yield from walk(contents, "", 0)


def _of_module(module: Blank, seen: set[int], depth: int = 0) -> dict[str, Any]:
    """Return the tensors of a module that was pickled whole by the names of its state dict."""
    state = module.state if isinstance(module.state, dict) else {}
    parts = {name: state.get(name) for name in ("_parameters", "_buffers", "_modules")}
    if depth > DEEPEST or not all(isinstance(part, dict) for part in parts.values()):
        return {}
    tensors = {**parts["_parameters"], **parts["_buffers"]}
    for name, inner in parts["_modules"].items():
        if isinstance(inner, Blank) and id(inner) not in seen:
            seen.add(id(inner))
            found = _of_module(inner, seen, depth + 1)
            tensors |= {f"{name}.{key}": tensor for key, tensor in found.items()}
    return tensors


def _networks(
    place: str, state: dict[str, Tensor], reasons: list[tuple[int, str]], depth: int = 0
) -> Iterator[tuple[str, str, list[Step]]]:
    """Yield the place, kind and chain of a state dict, or of the networks that it is made of.

    `reasons` takes up why one is none, beside its number of tensors.
    """
    try:
        yield place, *understand(state)
        return
    except ForeignError as error:
        reasons.append((len(state), str(error)))
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        first, dot, rest = name.partition(".")
        parts.setdefault(first if dot else "", {})[rest or name] = tensor
    for name, part in parts.items():
        if depth < DEEPEST and name and (len(parts) == 1 or NETWORK.fullmatch(name)):
            yield from _networks(f"{place}.{name}" if place else name, part, reasons, depth + 1)
