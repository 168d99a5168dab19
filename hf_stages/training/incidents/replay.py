"""Runs a bad update again, without its dataset and its script: the loss, and the gradient with and without its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hf_stages.core.batch import SOURCE, Batch
from hf_stages.core.randomness import preserve_random_state
from hf_stages.losses.objective.student_forwards import TaskForward
from hf_stages.models.capture import evaluating
from hf_stages.reports.incident_replay import Replay, ReplayedRow
from hf_stages.reports.incidents import BATCHES, Incident, IncidentRow, incident_file
from hf_stages.training.incidents.rebuilt_stage import RebuiltStage
from hf_stages.training.incidents.row_losses import weighted_loss
from hf_stages.training.incidents.split_rows import split_rows


@dataclass
class _Sums:
    """The update's loss and gradient over some of its rows: sums over items."""

    items: float
    loss: float
    gradient: list[torch.Tensor]

    @classmethod
    def like(cls, weights: Sequence[torch.Tensor]) -> _Sums:
        return cls(0.0, 0.0, [torch.zeros_like(weight, dtype=torch.float32) for weight in weights])

    def add(self, items: float, loss: float, weights: Sequence[torch.Tensor]) -> None:
        self.items += items
        self.loss += loss * items
        for total, weight in zip(self.gradient, weights, strict=True):
            if weight.grad is not None:
                total += weight.grad * items

    def without(self, other: _Sums) -> tuple[float, float]:
        """Return the loss, and the norm of the gradient, over the rows that are not in the other; 0 where none are."""
        items = self.items - other.items
        if items <= 0:
            return 0.0, 0.0
        parts = (one - two for one, two in zip(self.gradient, other.gradient, strict=True))
        return (self.loss - other.loss) / items, math.sqrt(sum(float(part.square().sum()) for part in parts)) / items


def replay_incident(out: str | Path, incident: Incident, *, most: int = 5, trust_remote_code: bool = False) -> Replay:
    """Run the update of an incident again: each row alone, forward and backward, in evaluation mode.

    Where a stage's loss has several terms, the gradient without a row is that of the others as the update weighs them.

    Args:
        out: The run's folder.
        incident: What to replay.
        most: How many of the worst rows are left out in turn.
        trust_remote_code: Whether code that the run names may be imported.
    """
    rows = _read_rows(Path(out), incident)
    stage = RebuiltStage.make(Path(out), incident, trust_remote_code=trust_remote_code)
    trained = [weight for weight in stage.model.parameters() if weight.requires_grad]
    worst = incident.worst(most)
    whole, outstanding = _Sums.like(trained), _Sums.like(trained)
    broken: list[tuple[Any, ...]] = []
    with preserve_random_state(), evaluating(stage.model):
        for row in incident.rows:
            found = _run(stage, rows[_key(row)], incident.t)
            if found is None:
                continue
            loss, items = found
            if not math.isfinite(loss) or not math.isfinite(_norm(trained)):
                broken.append(_key(row))
                continue
            whole.add(items, loss, trained)
            if row.stands_out:
                outstanding.add(items, loss, trained)
        replayed = tuple(_without(stage, row, rows, trained, whole, broken, incident.t) for row in worst)
    bad = {_key(row) for row in incident.standing_out}
    told = bool(bad) and whole.items > outstanding.items and set(broken) <= bad
    no_number = bool(broken) or whole.items <= 0  # the mean over no target is none, as it was in the training
    loss, norm = (math.nan, math.nan) if no_number else whole.without(_Sums.like(trained))
    loss_without, norm_without = whole.without(outstanding) if told else (None, None)
    rows_run = tuple(one for one in replayed if one is not None)
    return Replay(stage.weights, loss, norm, rows_run, loss_without, norm_without, stage.notes)


def _without(
    stage: RebuiltStage,
    row: IncidentRow,
    rows: dict[Any, Any],
    trained: Sequence[torch.Tensor],
    whole: _Sums,
    broken: Sequence[Any],
    t: float,
) -> ReplayedRow | None:
    """Run a row once more, and find what the update is without it."""
    found = _run(stage, rows[_key(row)], t)
    if found is None:
        return None
    loss, items = found
    own_norm = _norm(trained)
    if any(key != _key(row) for key in broken):
        return ReplayedRow(row, loss, own_norm, math.nan, math.nan)
    own = _Sums.like(trained)
    if _key(row) not in broken:
        own.add(items, loss, trained)
    return ReplayedRow(row, loss, own_norm, *whole.without(own))


def _run(stage: RebuiltStage, columns: dict[str, Any], t: float) -> tuple[float, float] | None:
    """Run one row forward and backward. Returns its loss and its items; None where it has no target."""
    stage.model.zero_grad(set_to_none=True)
    batch = Batch.split(columns, by_source=SOURCE in columns)

    def run(wanted: bool) -> tuple[Any, Any]:
        outputs = stage.model(**batch.inputs)
        return outputs.loss if "loss" in outputs else outputs[0], outputs

    needs_task = any("loss" in term.loss.needs for term in stage.losses.terms)
    task = TaskForward(run, stage.items_of_task(batch.columns), False, False, True) if needs_task else None
    found = weighted_loss(stage.losses, stage.model, batch, t, task, scales=stage.scales)
    if found is None:
        return None
    loss, items = found
    loss.backward()
    return float(loss.detach()), items


def _norm(weights: Sequence[torch.Tensor]) -> float:
    return math.sqrt(sum(float(w.grad.float().square().sum()) for w in weights if w.grad is not None))


def _key(row: IncidentRow) -> tuple[int, int, int]:
    return row.rank, row.micro_batch, row.row


def _read_rows(out: Path, incident: Incident) -> dict[tuple[int, int, int], dict[str, Any]]:
    """Read the micro-batches of an incident, as rows."""
    path = incident_file(out, incident.step).with_suffix(BATCHES)
    if not path.is_file():
        raise ValueError(f"{path}: there is none: the batches were too large to be kept, so this cannot be replayed")
    batches: dict[tuple[int, int], dict[str, Any]] = {}
    for name, tensor in load_file(path).items():
        rank, number, column = name.split(".", 2)
        batches.setdefault((int(rank), int(number)), {})[column] = tensor
    pairs = incident.rebuild.get("in_pairs", False)
    nothing: tuple[None, ...] = ()
    return {
        (rank, number, row.first): dict(row.columns)
        for (rank, number), batch in batches.items()
        for row in split_rows(batch, nothing, in_pairs=pairs)
    }
