"""Values of all ranks taken together on the device, at a log. Every rank logs at the same update."""

from __future__ import annotations

import torch
import torch.distributed as dist


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Return the sum over all ranks; the value itself where there is one rank."""
    if world_size() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Return the mean over all ranks."""
    return sum_over_ranks(value) / world_size()


def max_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Return the largest value of all ranks."""
    if world_size() == 1:
        return value
    largest = value.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest
