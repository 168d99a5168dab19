"""How deep a recurrent core was run in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hf_stages.layers.recurrent import RecurrentCore, find_recurrence
from hf_stages.monitors.base import Monitor, Readings, WatchedRun, Watcher


@dataclass(frozen=True)
class SampledDepth(Monitor):
    """Logs ``recurrence``: the mean number of cycles that a recurrent core was run since the last log.

    The number is drawn for each micro-batch, the same on all ranks, and moves the loss from log to log.

    >>> SampledDepth().logs
    ('recurrence',)
    """

    logs: ClassVar[tuple[str, ...]] = ("recurrence",)

    def check(self, run: WatchedRun) -> None:
        if find_recurrence(run.model) is None:
            raise run.error(self, "the model has no recurrent core; leave it out, or put MakeRecurrent into transforms")

    def watch(self, run: WatchedRun) -> Watcher:
        core = find_recurrence(run.model)
        assert core is not None
        return _Depths(core)


class _Depths(Watcher):
    def __init__(self, core: RecurrentCore) -> None:
        self.core = core
        self.reset()

    def reset(self) -> None:
        self.cycles, self.count = 0, 0

    def micro_batch(self, loss: torch.Tensor, batch: Mapping[str, Any]) -> None:
        self.cycles, self.count = self.cycles + (self.core.last_depth or 0), self.count + 1

    def log(self, view: Mapping[str, Any]) -> Readings:
        seen = {"recurrence": self.cycles / self.count} if self.count else {}
        self.reset()
        return seen

    def state_dict(self) -> dict[str, Any]:
        return {"cycles": self.cycles, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cycles, self.count = state["cycles"], state["count"]
