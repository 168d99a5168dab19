"""Continue the parent's schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_stages.core.curves import Step
from hf_stages.schedules.base import Defaults, Piece, Schedule, Span, check_optimizer
from hf_stages.schedules.fresh import Fresh

_MOST_POINTS = 1000
"""At most so many steps of a staircase stand for a piece of the parent's schedule."""


@dataclass(frozen=True)
class Resume(Schedule):
    """The parent's schedule extends over this stage too, and continues where the parent ended.

    Where a gate ended the parent early, this stage starts at the rate reached and still ends at the rate that was
    declared. The optimizer continues with the parent's moments, found by parameter name.

    >>> Resume().optimizer
    'carry'
    """

    optimizer: Literal["reset", "carry"] = "carry"
    """``reset`` begins with an empty optimizer."""
    resumes = True

    def __post_init__(self) -> None:
        check_optimizer("Resume", self.optimizer)

    def span(self, defaults: Defaults, *, total: int, parent_lr: float | None) -> Span:
        """Refuse: a stage without a parent has no shape to go on with."""
        raise ValueError("Resume() needs a parent to go on from; use Fresh()")

    def with_peak(self, rate: float) -> Fresh:
        """Refuse: the parent's schedule has the peak."""
        raise ValueError("Resume() has no peak of its own; use Fresh(peak=..., optimizer='carry') or Rewarm(to=...)")

    def squeezed(self, piece: Piece, steps: int, rate: float) -> Fresh:
        """Its piece of the parent's shape from ``rate`` on, as a staircase with a step for each update."""
        count, start = min(steps, _MOST_POINTS), piece.span.lr(piece.start)
        rates = [piece.span.lr(piece.start + k * piece.steps / count) for k in range(count)]
        return Fresh(rate, 0, Step(tuple((k / count, lr / start) for k, lr in enumerate(rates))), self.optimizer)
