"""The same run in several processes, its ranks, when torchrun starts it: one for each GPU.

Every function also works in a process of its own, which is rank 0 of 1.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(hours=3)  # how long ranks wait while one of them reads images


def joined_others() -> bool:
    """Return whether this process is one of several that have joined."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's number among all, from 0."""
    return dist.get_rank() if joined_others() else 0


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if joined_others() else 1


def local_rank() -> int:
    """Return this process's number on its machine, from 0, before or after it has joined."""
    return int(os.environ.get("LOCAL_RANK", 0))


@contextlib.contextmanager
def only_first_speaks() -> Iterator[None]:
    """Silence the processes but the first that torchrun started, before or after they have joined.

    What another one raises is still seen, as that leaves the context.
    """
    with contextlib.ExitStack() as stack:
        if int(os.environ.get("RANK", 0)) > 0:
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            stack.enter_context(contextlib.redirect_stderr(silence))
        yield


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, if it did; only the first of them speaks.

    A rank that fails does not take its leave, for which it would wait for the others; torchrun
    ends them.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or joined_others():
        yield
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    with only_first_speaks():
        yield
    _between_hosts.cache_clear()
    dist.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """Return every rank's `value`, a plain one, when all are here: a quick rank waits for hours."""
    if not joined_others():
        return [value]
    values = [None] * count()
    dist.all_gather_object(values, value, _between_hosts())
    return values


def largest(value: int) -> int:
    """Return the largest of all ranks' values, so that all of them do the same."""
    if not joined_others():
        return value
    shared = torch.tensor(value)
    dist.all_reduce(shared, dist.ReduceOp.MAX, _between_hosts())
    return int(shared)


@functools.cache
def _between_hosts() -> dist.ProcessGroup:
    """Return a group for values on the CPU; the networks' own should notice a lost rank sooner."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def part(batch_size: int) -> slice:
    """Return the rows of a global batch that are this rank's; `count()` divides its size."""
    size = batch_size // count()
    return slice(rank() * size, (rank() + 1) * size)


def share(network: nn.Module, device: torch.device) -> nn.Module:
    """Make `network` average its gradients over all ranks in every backward pass.

    Each rank keeps the running statistics of its own batches: to broadcast them would change
    what the discriminator's pass over real images saved for its gradients.
    """
    if not joined_others():
        return network
    devices = [device] if device.type == "cuda" else None
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(network, devices, **{name: False})  # its name since torch 2.15


def mean(values: Tensor) -> Tensor:
    """Average a tensor over the ranks."""
    if not joined_others():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / count()
