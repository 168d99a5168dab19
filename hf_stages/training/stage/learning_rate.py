"""The learning rate of a stage: where it stands in its span, and what gates have cut it by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_stages.core.ledger import Ledger
from hf_stages.planning.plan import Plan, PlannedStage
from hf_stages.schedules.base import Span
from hf_stages.training.stage.progress import Progress


@dataclass(frozen=True)
class LearningRate:
    """Computes the rate from span, progress and ledger alone, so a resumed run has the rates of an uncut one."""

    span: Span
    start: float
    """Where in the span the stage starts: below the planned position where a gate ended the parent early."""
    progress: Progress
    ledger: Ledger
    cut_by: tuple[str, ...]
    """The stages whose cuts lower this stage's rate: itself, and those whose schedule it goes on with."""

    def position(self, step: int | None = None) -> float:
        """Find where in the span the stage stands after ``step`` updates (now, if its length is in tokens)."""
        planned = self.progress.planned
        length = planned.s1 - self.start
        if planned.exact and step is not None:
            return self.start + min(step, planned.steps) * length / planned.steps
        return self.start + self.progress.t * length

    def multiplier(self, step: int) -> float:
        """Compute what the peak is multiplied by after ``step`` updates of the stage."""
        return self.span.shape(self.position(step)) * self.cuts(step)

    def cuts(self, step: int) -> float:
        """Compute what gates have multiplied the rate by after ``step`` updates of the stage."""
        return self.ledger.lr_factor(self.cut_by, self.progress.first_step + step)

    @property
    def now(self) -> float:
        """The rate that the stage has reached."""
        return self.span.lr(self.position(self.progress.steps)) * self.cuts(self.progress.steps)

    def apply(self, optimizer: Any, scheduler: Any) -> None:
        """Set the rate of the next update again.

        It was set before a gate cut it, or a rollback brought back the rate that its state was saved with.
        """
        for group, base in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = base * self.multiplier(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def stages_of_schedule(planned: PlannedStage, plan: Plan) -> tuple[str, ...]:
    """Name the stages whose schedule a stage goes on with, and the stage itself at the end."""
    return tuple(one.name for one in plan.lineage(planned.name) if one.span_root == planned.span_root)
