"""Find attention heads that have stopped to look at anything in particular."""

from __future__ import annotations

from dataclasses import dataclass

from hf_stages.gates.base import History
from hf_stages.gates.detectors.base import Detector, Finding
from hf_stages.gates.detectors.stretches import last_stretch


@dataclass(frozen=True)
class DeadHeads(Detector):
    """Finds attention heads that died in this stage: more of them than at its start.

    >>> logs = [{"step": s, "dead_heads": float(s > 0)} for s in (0, 10, 20, 30)]
    >>> DeadHeads()(History(step=30, logs=logs)).reason[:47]
    'attention heads have died in this stage (dead_h'
    """

    more: int = 0
    """How many more than at the stage's start are accepted."""
    logs: int = 3
    """How many logs in a row must count more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.logs < 1:
            raise ValueError(f"DeadHeads: logs: expected at least 1, got {self.logs}")

    @property
    def metric_read(self) -> str:
        return "dead_heads"

    def find(self, history: History) -> Finding | None:
        first = next((log["dead_heads"] for log in history.logs if "dead_heads" in log), 0.0)
        more = last_stretch(history.newest("dead_heads"), lambda count: count > first + self.more)
        if len(more) < self.logs:
            return None
        return Finding(
            "attention heads have died in this stage",
            {"dead_heads": more[-1][1], "at the start": first},
            "a lower learning rate, weight decay or a norm on queries and keys (attention_max_logit says whether they "
            "grow)",
        )
