"""Find quantized layers whose weights have all become zero or no longer move."""

from __future__ import annotations

from dataclasses import dataclass

from hf_stages.gates.base import History
from hf_stages.gates.detectors.base import Detector, Finding
from hf_stages.gates.detectors.stretches import last_stretch


@dataclass(frozen=True)
class DeadLayers(Detector):
    """Finds quantized layers that are dead (almost all zeros) or saturated (no sign changes any more).

    >>> DeadLayers()(History(30, logs=[{"step": s, "dead_layers": 2.0} for s in (10, 20, 30)])).reason[:42]
    'quantized layers are dead (dead_layers 2);'
    """

    most: int = 0
    """How many such layers are accepted."""
    logs: int = 3
    """How many logs in a row must count more."""
    saturated: bool = False
    """True: layers that are saturated count as well; at the end of a healthy run many are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.logs < 1:
            raise ValueError(f"DeadLayers: logs: expected at least 1, got {self.logs}")

    @property
    def metric_read(self) -> str:
        return "dead_layers"

    def find(self, history: History) -> Finding | None:
        for metric, word in (("dead_layers", "dead"), ("saturated_layers", "saturated")):
            more = last_stretch(history.newest(metric), lambda count: count > self.most)
            if len(more) >= self.logs and (self.saturated or metric == "dead_layers"):
                advice = (
                    "a lower learning rate, another threshold or scale of the layer, more weight on the task's loss"
                )
                return Finding(f"quantized layers are {word}", {metric: more[-1][1]}, advice)
        return None
