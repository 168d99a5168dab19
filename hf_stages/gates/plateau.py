"""End the stage once a metric stops getting better."""

from __future__ import annotations

from dataclasses import dataclass

from hf_stages.gates.base import Decision, Gate, History


@dataclass(frozen=True)
class Plateau(Gate):
    """Ends the stage when the best of the last ``patience`` values is no better than the best before them.

    >>> Plateau("eval_loss", patience=2)(History(9, logs=[{"eval_loss": v} for v in (3.0, 3.1, 3.0)])).reason
    'eval_loss has not improved on 3 in 2 evaluations'
    """

    metric: str = "eval_loss"
    """A name in the log."""
    patience: int = 3
    """How many values may pass without an improvement."""
    min_delta: float = 0.0
    """An improvement smaller than this does not count."""
    greater_is_better: bool = False
    """True for an accuracy, False for a loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_infinite("min_delta")
        if self.patience < 1:
            raise ValueError(f"Plateau: patience: expected at least 1, got {self.patience}")

    def __call__(self, history: History) -> Decision | None:
        sign = -1.0 if self.greater_is_better else 1.0
        values = [sign * value for value in history.values(self.metric)]
        before, recent = values[: -self.patience], values[-self.patience :]
        if not before or min(recent) < min(before) - self.min_delta:
            return None
        best = sign * min(before)
        return Decision("end", f"{self.metric} has not improved on {best:.6g} in {self.patience} evaluations")
