"""How fast training goes, how much memory it holds, and how long it waits for data."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hf_stages.models.real_tokens import real_tokens, shape_of
from hf_stages.monitors.base import Monitor, Readings, WatchedRun, Watcher
from hf_stages.monitors.ranks import max_over_ranks, mean_over_ranks, sum_over_ranks


@dataclass(frozen=True)
class Throughput(Monitor):
    """Logs tokens per second, memory, and the share of time that updates wait for the data loader.

    ``tokens_per_second`` counts tokens that are no padding, on all ranks, over the time of updates alone: evaluations
    and checkpoints are left out. ``memory_gib`` is the most that the process has held so far: memory that torch
    allocated on a GPU, else resident memory; of several ranks the largest. ``data_wait`` is a share from 0 to 1, the
    mean over ranks. These numbers read the clock, so a resumed run logs others.

    >>> Throughput().logs
    ('tokens_per_second', 'memory_gib', 'data_wait')
    """

    logs: ClassVar[tuple[str, ...]] = ("tokens_per_second", "memory_gib", "data_wait")

    def watch(self, run: WatchedRun) -> Watcher:
        return _Pace(run.device)


class _Pace(Watcher):
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        self.tokens: Any = torch.zeros((), device=self.device, dtype=torch.float32)
        self.waited, self.took = 0.0, 0.0
        self.has_tokens = False
        """False where batches are of images, or of anything else without tokens."""

    def micro_batch(self, loss: torch.Tensor, batch: Mapping[str, Any]) -> None:
        real = real_tokens(batch)
        shape = shape_of(batch)
        self.has_tokens = self.has_tokens or real is not None or shape is not None
        if real is not None:
            self.tokens += real.sum()
        elif shape is not None:
            self.tokens += shape.numel()

    def timing(self, waited: float, took: float) -> None:
        self.waited, self.took = self.waited + waited, self.took + took

    def log(self, view: Mapping[str, Any]) -> Readings:
        if not self.took:
            return {}
        waited = torch.tensor(self.waited / self.took, device=self.device)
        seen = {"data_wait": mean_over_ranks(waited), "memory_gib": max_over_ranks(_memory(self.device))}
        if self.has_tokens:
            seen["tokens_per_second"] = sum_over_ranks(self.tokens) / self.took
        self.reset()
        return seen

    def state_dict(self) -> dict[str, Any]:
        tokens = float(self.tokens) if self.has_tokens else None
        return {"tokens": tokens, "waited": self.waited, "took": self.took}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.has_tokens = state["tokens"] is not None
        self.tokens = torch.tensor(state["tokens"] or 0.0, device=self.device)
        self.waited, self.took = state["waited"], state["took"]


def _memory(device: torch.device) -> torch.Tensor:
    """Return the most GiB that this process has held: on its GPU, or in main memory."""
    if device.type == "cuda":
        held = float(torch.cuda.max_memory_allocated(device))
    elif sys.platform == "win32":
        held = float("nan")
    else:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        held = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    return torch.tensor(held / 2**30, device=device)
