"""How much each term gives to a stage's loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from hf_stages.monitors.base import Monitor, Readings, WatchedRun


@dataclass(frozen=True)
class LossShares(Monitor):
    """Logs which share of a stage's loss each of its terms is: its weighted mean since the last log, of their sum.

    Weights are those at the log. Where terms are negative, sizes count.

    >>> LossShares()({"loss_terms": {"TaskLoss": 3.0, "LogitKL": 1.0}})
    {'loss_share_TaskLoss': 0.75, 'loss_share_LogitKL': 0.25}
    """

    logs: ClassVar[tuple[str, ...]] = ("loss_share_*",)

    def check(self, run: WatchedRun) -> None:
        if len(run.terms) < 2:
            raise run.error(self, "the stage's loss has fewer than two terms; leave it out, or add terms")

    def __call__(self, view: Mapping[str, Any]) -> Readings:
        sizes = {name: abs(value) for name, value in view["loss_terms"].items()}
        total = sum(sizes.values())
        return {f"loss_share_{name}": size / total for name, size in sizes.items()} if total else {}
