"""The loss of each source of a mixture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from hf_stages.core.occasions import LogSpaced, as_occasions
from hf_stages.monitors.base import Monitor, Readings, WatchedRun, Watcher, check_count
from hf_stages.monitors.probes import FixedRows


@dataclass(frozen=True)
class LossBySource(Monitor):
    """Logs the model's own loss on the first rows of each source that a stage draws from, as ``loss_of_<source>``.

    The rows are fixed, and the model runs in evaluation mode: the numbers can be compared over time, and cost a
    forward of ``rows`` rows for each source. They are rows that are trained on, so they say nothing of unseen text.

    >>> LossBySource(rows=8).logs
    ('loss_of_*',)
    """

    rows: int = 4
    """How many rows of each source."""
    every: Any = field(default_factory=LogSpaced)
    """On which updates: it takes part in the first training log after each of them."""

    logs: ClassVar[tuple[str, ...]] = ("loss_of_*",)

    def __post_init__(self) -> None:
        as_occasions(self.every, "LossBySource")
        check_count(self, "rows")

    def check(self, run: WatchedRun) -> None:
        if len(run.sources) < 2:
            raise run.error(self, "the stage draws from fewer than two sources; leave it out, or train on a Mixture")

    def watch(self, run: WatchedRun) -> Watcher:
        return _Sources(self, run)


class _Sources(Watcher):
    def __init__(self, declared: LossBySource, run: WatchedRun) -> None:
        self.probes = {
            name: FixedRows(run, declared, rows=declared.rows, dataset=dataset) for name, dataset in run.sources.items()
        }
        for name, probe in self.probes.items():
            if not torch.is_tensor(probe.loss()):
                raise run.error(declared, f"the model gives no loss on rows of {name!r}; they need labels")

    def log(self, view: Mapping[str, Any]) -> Readings:
        return {f"loss_of_{name}": probe.loss() for name, probe in self.probes.items()}
