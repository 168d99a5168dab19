"""What is measured of a stage: at its parent's end, at its start, and while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.trainer_callback import TrainerState

from hf_stages.evaluation.last_evaluation import LastEvaluation
from hf_stages.evaluation.start_metrics import as_evaluated

_FAR = 0.2
"""A loss this much above the parent's is worth a notice."""


class StageMetrics:
    """Holds a stage's measurements, which the next stage, its gates and its folder read.

    Args:
        trainer: Whose evaluations these are.
        before: Metrics that the parent ended with.
    """

    def __init__(self, trainer: Any, before: Mapping[str, float]) -> None:
        self.before = dict(before)
        self.start: dict[str, float] = {}
        """Metrics after the stage's transforms, before its first update."""
        self.first_log = 0
        """Where the stage's own entries begin in ``state.log_history``."""
        self.last = LastEvaluation(trainer)
        self.teacher_terms: Any = None
        """The TeacherTerms of an evaluation within the stage; None where terms with a teacher are not measured."""

    def logs(self, state: TrainerState) -> list[dict[str, Any]]:
        """The stage's own log entries, the oldest first."""
        return state.log_history[self.first_log :]

    @property
    def start_as_evaluated(self) -> dict[str, float]:
        return as_evaluated(self.start)

    @property
    def reference(self) -> dict[str, float]:
        """The losses that forgetting is measured from."""
        return {**self.start_as_evaluated, **self.before}

    def rise(self, now: Mapping[str, Any]) -> tuple[str, float, float] | None:
        """Find a loss that is far above the parent's: its name, what the parent ended with, what it is now."""
        for key, ended in self.before.items():
            if key.startswith("eval_") and key.endswith("loss") and now.get(key, ended) > ended + _FAR * abs(ended):
                return key, ended, now[key]
        return None
