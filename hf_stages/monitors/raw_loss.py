"""The loss of each update as it is, before Trainer replaces what is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hf_stages.monitors.base import Monitor, Readings, WatchedRun, Watcher
from hf_stages.monitors.ranks import mean_over_ranks


@dataclass(frozen=True)
class RawLoss(Monitor):
    """Logs the mean and the largest loss of the updates since the last log, NaN and infinity included.

    Trainer's own ``loss`` leaves out what is not finite (``logging_nan_inf_filter``) and hides a spike in a mean. Of
    several ranks the mean is taken.

    >>> RawLoss().logs
    ('raw_loss', 'raw_loss_max')
    """

    logs: ClassVar[tuple[str, ...]] = ("raw_loss", "raw_loss_max")

    def watch(self, run: WatchedRun) -> Watcher:
        return _Losses(run.device)


class _Losses(Watcher):
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        self.updates: list[torch.Tensor] = []
        self.now: torch.Tensor | None = None
        """The sum over the micro-batches of the update in progress."""

    def micro_batch(self, loss: torch.Tensor, batch: Mapping[str, Any]) -> None:
        loss = loss.detach().float()
        self.now = loss.clone() if self.now is None else self.now + loss

    def end_micro_batches(self) -> None:
        if self.now is not None:
            self.updates.append(self.now)
            self.now = None

    def log(self, view: Mapping[str, Any]) -> Readings:
        if not self.updates:
            return {}
        losses = mean_over_ranks(torch.stack(self.updates))
        self.reset()
        return {"raw_loss": losses.mean(), "raw_loss_max": losses.max()}  # of these, NaN is the largest

    def state_dict(self) -> dict[str, Any]:
        return {"updates": torch.stack(self.updates).tolist() if self.updates else []}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reset()
        self.updates = [torch.tensor(loss, dtype=torch.float32, device=self.device) for loss in state["updates"]]
