"""Writes down the rows of an update that went wrong: where they come from, how bad each is, and what a replay needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_stages.core.errors import LossNotFinite
from hf_stages.core.ranks import from_all_ranks, from_main_rank
from hf_stages.core.sealed_folders import is_disk_error
from hf_stages.planning.plan import PlannedStage
from hf_stages.reports.incidents import FOLDER, Incident, incident_steps, judge_rows, remove_incident, write_incident
from hf_stages.training.incidents.measured_rows import measured_rows
from hf_stages.training.incidents.rebuilding import KeptTensors, what_rebuilds
from hf_stages.training.incidents.row_losses import RowLosses
from hf_stages.training.stage.kept_updates import KeptUpdate
from hf_stages.training.stage.stage_feed import StageFeed
from hf_stages.training.stage.stage_notes import StageNotes

logger = logging.get_logger(__name__)
MOST, MOST_ROWS = 10, 2048
"""Incidents of a stage that are written down, and rows that each lists."""


class Incidents:
    """Records the rows of bad updates, at most ``MOST`` times in a stage.

    Args:
        trainer: Whose model measures the rows.
        planned: The stage.
        feed: The stage's data, which holds the newest updates.
        notes: The stage's part of the ledger.
    """

    def __init__(self, trainer: Any, planned: PlannedStage, feed: StageFeed, notes: StageNotes) -> None:
        self.trainer, self.planned, self.feed, self.notes = trainer, planned, feed, notes
        self.out = Path(trainer.args.output_dir)

    def begin(self) -> None:
        """A stage begins anew: incidents of an attempt before are not its own."""
        if self.trainer.args.should_save:
            for step in incident_steps(self.out):
                if step > self.feed.progress.first_step:
                    remove_incident(self.out, step)

    def record(
        self,
        reason: str,
        *,
        by: str = "",
        update: int | None = None,
        typical: float | None = None,
        before: bool = True,
    ) -> None:
        """Measure the rows of a bad update with the weights as they are now, and write them down. Collective.

        Nothing is written where the stage has ``MOST`` incidents already, where this update has one, or where the
        update is no longer held.

        Args:
            reason: What went wrong, in a sentence.
            by: Who noticed.
            update: Its number in the stage, from 1; None: the newest that was made.
            typical: The loss of a good update, where it is known; else the newest one that was logged.
            before: Whether the weights are those from before this update: it was skipped, or taken back.
        """
        progress, told = self.feed.progress, self.notes.entries("incident")
        kept = self.feed.newest.find(progress.steps if update is None else update)
        if kept is None or len(told) >= MOST:
            return
        step = progress.first_step + kept.number
        name = f"{FOLDER}/step-{step}.jsonl"
        if any(entry.reason.startswith(f"{name}:") for entry in told):
            return
        measure = RowLosses(self.trainer)
        mine = measured_rows(self.trainer, self.feed, kept, measure)
        ranks = from_all_ranks((mine, measure.problem), self.trainer.args)
        rows, usual = judge_rows([row for rows, _ in ranks for row in rows], self._usual(typical))
        incident = Incident(
            step=step,
            stage=self.planned.name,
            by=by,
            reason=reason,
            t=kept.t,
            before=before,
            usual=usual,
            rows=tuple(rows[:MOST_ROWS]),
            left_out=max(len(rows) - MOST_ROWS, 0),
            problem=next((problem for _, problem in ranks if problem), None),
            rebuild=what_rebuilds(self.trainer, self.planned),
        )
        problem = self._write(incident, kept)
        full = f"; the stage has {MOST} now, further ones are not written" if len(told) + 1 == MOST else ""
        text = f"{name}: {incident.summary()}{problem}{full}"
        self.notes.note("incident", text, by=by)
        logger.warning(f"stage {self.planned.name!r}: {text}")

    @contextmanager
    def of_a_stop(self) -> Iterator[None]:
        """Record the update at hand where the block ends the run because its loss is not finite, on all ranks."""
        try:
            yield
        except LossNotFinite as error:
            reasons = from_all_ranks(str(error), self.trainer.args)  # a rank whose own loss is finite names no term
            reason = max(reasons, key=lambda text: "on another rank" not in text)
            self.record(reason, by="loss", update=self.feed.progress.steps + 1)
            raise

    def _usual(self, typical: float | None) -> float | None:
        """Find what a good update costs. The newest logged loss may hold the bad update itself, so the lower of two."""
        logs = [log for log in self.trainer.state.log_history if log.get("stage") == self.planned.index]
        losses = [log["loss"] for log in logs if "loss" in log][-2:]
        finite = [loss for loss in (*losses, *([] if typical is None else [typical])) if math.isfinite(loss)]
        return from_main_rank(min(finite) if finite else None, self.trainer.args)

    def _write(self, incident: Incident, kept: KeptUpdate) -> str:
        """Write the files on rank 0. Returns what did not work: a full disk must not end a run."""
        tensors, problem = KeptTensors.of_all_ranks(self.trainer, kept), ""
        if self.trainer.args.should_save:
            try:
                tensors.write(self.out, incident.step)
                write_incident(self.out, incident)
            except Exception as error:  # torch and safetensors have errors of their own for a full disk
                if not is_disk_error(error) and not isinstance(error, OSError):
                    raise
                problem = f"; it could not be written: {error}"
        return from_main_rank(problem, self.trainer.args)
