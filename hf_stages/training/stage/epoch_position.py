"""A stage's position in the epoch that Trainer's loop is in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class EpochPosition:
    """Counts the updates of one epoch. A resumed epoch begins with the updates that were done before the cut."""

    accumulation: int
    number: int = 0
    batches: int = 0
    """Micro-batches of the whole epoch on this rank."""
    updates: int = 0
    """Updates of the whole epoch."""
    done: int = 0
    """Updates of it that are done."""
    done_before: int = 0
    """Updates that were done before a cut, until the resumed epoch takes them up."""

    def enter(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Begin the epoch that Trainer names. Returns Trainer's arguments, shortened by what was done before a cut."""
        self.number = kwargs["epoch"]
        self.batches, self.updates = kwargs["steps_in_epoch"], kwargs["num_update_steps_per_epoch"]
        self.done, self.done_before = self.done_before, 0
        left = {"steps_in_epoch": self.batches - self.done * self.accumulation}
        return {**kwargs, **left, "num_update_steps_per_epoch": self.updates - self.done}

    @property
    def is_over(self) -> bool:
        return self.done == self.updates

    @property
    def passed(self) -> float:
        """Epochs trained so far, as Trainer logs them: 1.25 is a quarter into the second one."""
        return self.number + min(self.done * self.accumulation, self.batches) / self.batches
