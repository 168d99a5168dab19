"""End the stage once a metric is high enough."""

from __future__ import annotations

from dataclasses import dataclass

from hf_stages.gates.base import Decision, Gate, History


@dataclass(frozen=True)
class Above(Gate):
    """Ends the stage when the last value of ``metric`` is above ``value``.

    >>> Above("eval_accuracy", 0.9)(History(step=10, logs=[{"eval_accuracy": 0.95}])).reason
    'eval_accuracy is 0.95, above 0.9'
    """

    metric: str
    """A name in the log, such as ``eval_accuracy``."""
    value: float
    """The limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_infinite("value")

    def __call__(self, history: History) -> Decision | None:
        values = history.values(self.metric)
        if values and values[-1] > self.value:
            return Decision("end", f"{self.metric} is {values[-1]:.6g}, above {self.value:.6g}")
        return None
