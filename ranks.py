"""The same run in several processes, its ranks, when torchrun starts it: one for each GPU.

Every function also works in a process of its own, which is rank 0 of 1.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(hours=3)  # ranks wait that long for each other, as while one reads pictures


def rank() -> int:
    """Give this process's number among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Give the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Give this process's number on its machine, from 0, before or after it has joined."""
    return int(os.environ.get("LOCAL_RANK", 0))


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, if it did; only the first of them speaks.

    What another rank raises is still seen, as that leaves the context.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        with contextlib.ExitStack() as stack:
            if rank() > 0:
                silence = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(silence))
                stack.enter_context(contextlib.redirect_stderr(silence))
            yield
    finally:
        dist.destroy_process_group()


def wait() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def agree(value: int, device: torch.device) -> bool:
    """Tell, on every rank alike, whether `value` is the same on all of them."""
    if not dist.is_initialized():
        return True
    values = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(count())]
    dist.all_gather(values, torch.tensor([value], device=device))
    return all(other == value for other in values)


def part(batch_size: int) -> slice:
    """Give the rows of a global batch that are this rank's; `count()` divides its size."""
    size = batch_size // count()
    return slice(rank() * size, (rank() + 1) * size)


def share(network: nn.Module, device: torch.device) -> nn.Module:
    """Make `network` average its gradients over all ranks in every backward pass.

    Each rank keeps the running statistics of its own batches: to broadcast them would change
    what the discriminator's pass over real pictures saved for its gradients.
    """
    if not dist.is_initialized():
        return network
    devices = [device] if device.type == "cuda" else None
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(network, devices, **{name: False})  # its name since torch 2.15


def mean(values: Tensor) -> Tensor:
    """Average a tensor over the ranks."""
    if not dist.is_initialized():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / count()
