"""A stage's own entries in the run's ledger."""

from __future__ import annotations

from dataclasses import dataclass

from hf_stages.core.ledger import Entry, Ledger
from hf_stages.training.stage.progress import Progress


@dataclass(frozen=True)
class StageNotes:
    """Writes entries of one stage, at the step that it has reached, and reads them."""

    ledger: Ledger
    stage: str
    progress: Progress

    def note(
        self, kind: str, reason: str, *, by: str = "", value: float | None = None, again_from: int | None = None
    ) -> None:
        step = self.progress.global_step
        self.ledger.note(step, self.stage, kind, reason, by=by, value=value, again_from=again_from)

    def entries(self, kind: str | None = None) -> list[Entry]:
        return self.ledger.select(self.stage, kind)
