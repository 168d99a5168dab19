"""What a gate reads and what it may answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class History:
    """The stage so far. ``logs`` are the stage's own entries of ``state.log_history``, oldest first."""

    step: int
    """Updates done in this stage."""
    tokens: int = 0
    seconds: float = 0.0
    logs: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def values(self, metric: str) -> list[float]:
        return [log[metric] for log in self.logs if metric in log]


@dataclass(frozen=True)
class Decision:
    """``alert`` writes the reason to the ledger, ``end`` ends the stage, ``stop`` ends the run before the next stage."""

    action: Literal["alert", "end", "stop"]
    reason: str


class Gate:
    """Base of all gates: a frozen dataclass, asked after every update (``on = "step"``), after new log entries
    (``"log"``) or once at the stage's end (``"end"``)."""

    on: Literal["step", "log", "end"] = "log"
    reads_clock: bool = False
    """True: the answer depends on the wall clock, so a resumed run may differ from an uncut one."""

    def __call__(self, history: History) -> Decision | None:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(history)")
