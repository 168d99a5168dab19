"""End the stage once a metric is low enough."""

from __future__ import annotations

from dataclasses import dataclass

from hf_stages.gates.base import Decision, Gate, History


@dataclass(frozen=True)
class Below(Gate):
    """Ends the stage when the last value of ``metric`` is below ``value``.

    >>> Below("eval_loss", 3.2)(History(step=10, logs=[{"eval_loss": 3.1}])).reason
    'eval_loss is 3.1, below 3.2'
    """

    metric: str
    """A name in the log, such as ``eval_loss``."""
    value: float
    """The limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_infinite("value")

    def __call__(self, history: History) -> Decision | None:
        values = history.values(self.metric)
        if values and values[-1] < self.value:
            return Decision("end", f"{self.metric} is {values[-1]:.6g}, below {self.value:.6g}")
        return None
