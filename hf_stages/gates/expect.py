"""Say what a stage should reach; where it does not, the run stops before the next stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_stages.gates.base import Decision, Gate, History


@dataclass(frozen=True)
class Expect(Gate):
    """Stops the run before the next stage where the stage's final metric is outside a range.

    ``action="warn"`` only writes that down. The stage folder is kept either way: look at it, then resume with
    ``Expect`` removed or widened.

    >>> Expect("eval_loss", 3.0, 3.5)(History(100, logs=[{"eval_loss": 6.6}])).reason
    'eval_loss: expected 3.0-3.5, got 6.6'
    """

    metric: str
    """A name in the log, such as ``eval_accuracy``."""
    low: float = float("-inf")
    """The least value that is accepted."""
    high: float = float("inf")
    """The largest value that is accepted."""
    action: Literal["stop", "warn"] = "stop"
    """``stop`` ends the run before the next stage, ``warn`` goes on."""
    on = "end"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low == float("inf") or self.high == float("-inf"):
            raise ValueError(f"Expect({self.metric!r}): no number lies between low {self.low} and high {self.high}")
        if self.low > self.high:
            raise ValueError(f"Expect({self.metric!r}): low {self.low} is above high {self.high}")
        if self.action not in ("stop", "warn"):
            raise ValueError(f"Expect({self.metric!r}): action: expected 'stop' or 'warn', got {self.action!r}")

    def __call__(self, history: History) -> Decision | None:
        values = history.values(self.metric)
        action: Literal["stop", "alert"] = "stop" if self.action == "stop" else "alert"
        if not values:
            known = sorted({key for log in history.logs for key in log if key.startswith("eval_")})
            return Decision(
                action, f"{self.metric}: expected {self._range()}, but it was never measured; there are {known}"
            )
        if not self.low <= values[-1] <= self.high:
            return Decision(action, f"{self.metric}: expected {self._range()}, got {values[-1]:.6g}")
        return None

    def _range(self) -> str:
        return f"{self.low}-{self.high}"
