"""A stage that has ended, as a value: what its folder says, for all that comes after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_stages.core.ledger import Ledger
from hf_stages.core.sealed_folders import STAGE_FILE, read_json
from hf_stages.gates.base import History
from hf_stages.planning.plan import PlannedStage


@dataclass(frozen=True)
class FinishedStage:
    """Holds what is known of a finished stage. One of an earlier process, read from its folder, is the same value."""

    planned: PlannedStage
    """The stage as it was planned: its name, its gates, its exporters."""
    folder: Path
    """The stage's folder in the run's folder."""
    summary: Mapping[str, Any]
    """What ``stage.json`` says."""

    @classmethod
    def read(cls, folder: Path, planned: PlannedStage) -> FinishedStage:
        return cls(planned, folder, read_json(folder / STAGE_FILE, "a stage folder of hf_stages"))

    @property
    def name(self) -> str:
        return self.planned.name

    @property
    def metrics(self) -> dict[str, float]:
        """What evaluation said at the stage's end."""
        return self.summary["metrics"]

    @property
    def global_step(self) -> int:
        """Updates that the run had done when the stage ended."""
        return self.summary["global_step"]

    @property
    def learning_rate(self) -> float:
        """The rate that the stage ended with."""
        return self.summary["lr_end"]

    @property
    def schedule_position(self) -> float:
        """Where in its learning-rate span the stage ended."""
        return self.summary["schedule"]["position"]

    @property
    def ledger(self) -> Ledger:
        """The run's decisions up to the stage's end."""
        return Ledger.from_list(self.summary["ledger"])

    @property
    def history(self) -> History:
        """What gates are asked on at the stage's end: its recorded metrics, so that a resumed run is judged as the
        first was."""
        said = self.summary
        return History(said["steps"], int(said["tokens"]), said["seconds"], [said["metrics"]])
