"""One run in several processes, the ranks that torchrun starts: one for each GPU.

Every function also works in a process of its own, which is rank 0 of a world size of 1.
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

from utils import SettingsError, warn

PATIENCE = timedelta(hours=3)  # how long ranks wait while one of them decodes images or measures


def is_initialized() -> bool:
    """Return whether this process is one of several that have joined."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's rank, from 0."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_initialized() else 1


def local_rank() -> int:
    """Return this process's rank on its machine, before or after it has joined."""
    return int(os.environ.get("LOCAL_RANK", 0))


@contextlib.contextmanager
def only_rank_zero_prints() -> Iterator[None]:
    """Silence all ranks but the first, before or after they have joined.

    An exception that leaves the context is still printed.
    """
    with contextlib.ExitStack() as stack:
        if int(os.environ.get("RANK", 0)) > 0:
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            stack.enter_context(contextlib.redirect_stderr(silence))
        yield


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, if it did; only rank 0 prints.

    A rank that fails does not leave the group, which would wait for the others; torchrun ends them.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or is_initialized():
        yield
        return
    backend = backend_for(device)
    dist.init_process_group(backend, device_id=device if backend == "nccl" else None)
    with only_rank_zero_prints():
        yield
    _cpu_group.cache_clear()
    dist.destroy_process_group()


def backend_for(device: torch.device) -> str:
    """Return the backend that averages gradients on `device`.

    Raises:
        SettingsError: this PyTorch has none for it.
    """
    if device.type == "cuda" and dist.is_nccl_available():
        return "nccl"
    if device.type == "cuda":  # as on Windows
        warn("this PyTorch has no NCCL: gloo averages the gradients, slower")
    if device.type == "xpu" and dist.is_backend_available("xccl"):
        return "xccl"
    if device.type in ("xpu", "mps"):
        raise SettingsError(f"--device {device.type}: this PyTorch trains on one of them only")
    return "gloo"


def gather(value: Any) -> list[Any]:
    """Return every rank's plain `value`, once all are here; the first may wait for `PATIENCE`."""
    if not is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value, _cpu_group())
    return values


def largest(value: int) -> int:
    """Return the largest of all ranks' values, so that all of them do the same."""
    if not is_initialized():
        return value
    shared = torch.tensor(value)
    dist.all_reduce(shared, dist.ReduceOp.MAX, _cpu_group())
    return int(shared)


@functools.cache
def _cpu_group() -> dist.ProcessGroup:
    """Return a group for values on the CPU; the networks' own should notice a lost rank sooner."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


def shard(batch_size: int) -> slice:
    """Return the rows of a global batch that are this rank's; the world size divides it."""
    size = batch_size // world_size()
    return slice(rank() * size, (rank() + 1) * size)


def average_gradients(network: nn.Module, device: torch.device) -> nn.Module:
    """Wrap `network` so that every backward pass averages its gradients over all ranks.

    Each rank keeps the running statistics of its own batches: to broadcast them would change
    what the discriminator's pass over real images saved for its gradients.
    """
    if not is_initialized():
        return network
    devices = [device] if device.type == "cuda" else None
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(network, devices, **{name: False})  # its name since torch 2.15


def mean(values: Tensor) -> Tensor:
    """Average a tensor over the ranks."""
    if not is_initialized():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()
