"""Find that training waits for its data."""

from __future__ import annotations

from dataclasses import dataclass

from hf_stages.gates.base import History
from hf_stages.gates.detectors.base import Detector, Finding
from hf_stages.gates.detectors.stretches import last_stretch


@dataclass(frozen=True)
class StalledLoader(Detector):
    """Finds that a large share of the time passes in waiting for the data loader.

    It reads the wall clock: a resumed run may alert at another step than an uncut one.

    >>> StalledLoader()(History(50, logs=[{"step": s, "data_wait": 0.8} for s in range(10, 60, 10)])).reason[:50]
    'training waits for its data (data_wait 0.8); to tr'
    """

    share: float = 0.5
    """The share of the time in waiting that is accepted."""
    logs: int = 5
    """How many logs in a row must find more."""
    reads_clock = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share < 1:
            raise ValueError(f"StalledLoader: share: expected between 0 and 1, got {self.share}")
        if self.logs < 1:
            raise ValueError(f"StalledLoader: logs: expected at least 1, got {self.logs}")

    @property
    def metric_read(self) -> str:
        return "data_wait"

    def find(self, history: History) -> Finding | None:
        slow = last_stretch(history.newest("data_wait"), lambda share: share > self.share)
        if len(slow) < self.logs:
            return None
        advice = "more dataloader_num_workers, examples that are tokenized beforehand, a faster disk"
        return Finding("training waits for its data", {"data_wait": slow[-1][1]}, advice)
