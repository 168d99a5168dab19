"""Measures the loss of each row alone, by the stage's own losses, without a trace in the training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from hf_stages.core.batch import Batch
from hf_stages.core.randomness import preserve_random_state
from hf_stages.losses.base import value_and_logged
from hf_stages.losses.objective.micro_batch_loss import task_forward
from hf_stages.losses.objective.stage_losses import StageLosses
from hf_stages.losses.objective.student_forwards import TaskForward
from hf_stages.losses.objective.terms import terms_with_weight
from hf_stages.losses.objective.trainer_notes import preserve_trainer_notes
from hf_stages.models.capture import evaluating


def weighted_loss(
    losses: StageLosses,
    model: Any,
    batch: Batch,
    t: float,
    task: TaskForward | None,
    *,
    scales: Mapping[str, float],
    autocast: Any = nullcontext,
) -> tuple[torch.Tensor, float] | None:
    """Compute the weighted sum of the terms on one batch, each as a mean over its items.

    Returns the loss and the items of its first term; None where no term has an item.

    Args:
        losses: The terms.
        model: What they are computed of.
        batch: The batch.
        t: The progress of the stage, which weights depend on.
        task: The model's own loss, where a term reads it.
        scales: What a ``Balanced`` multiplied terms by, by the term's name.
        autocast: The trainer's.
    """
    student, teacher = losses.signals(model, batch, t, task=task, autocast=autocast)
    total, first = None, 0.0
    for term in terms_with_weight(losses.terms, t):
        items = float(term.loss.items(batch.columns))
        if items == 0:
            continue
        value, _ = value_and_logged(term.loss(student, teacher, batch.columns, t))
        weight = term.weight(t) * scales.get(term.name, 1.0)
        share = value.sum() * (weight / (1.0 if term.loss.summed else items))
        total, first = (share, items) if total is None else (total + share, first)
    return None if total is None else (total, first)


class RowLosses:
    """Measures rows with a trainer's model, in evaluation mode and without gradients. Generators stay where they are.

    Args:
        trainer: A trainer with a stage in progress.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.scales = trainer._stage.objective.scales_by_name()
        """What the update multiplied balanced terms by, as the losses of good updates that rows are compared with."""
        self.problem: str | None = None
        """Why a row could not be measured, of the first such row."""

    def __call__(self, rows: Sequence[Any], t: float, forwards: int) -> list[float | None]:
        """Return the loss of each row; None where it has no target or cannot be measured.

        Args:
            rows: Batches of one row.
            t: The progress of the stage.
            forwards: How many forwards to run, at least one for each row. Sharded models need as many on every rank.
        """
        with _without_a_trace(self.trainer):
            found = [self._loss(row, t) for row in rows]
            for _ in range(forwards - len(rows) if rows else 0):
                self._loss(rows[-1], t)
        return found

    def _loss(self, row: Any, t: float) -> float | None:
        trainer, losses = self.trainer, self.trainer._stage.losses
        try:
            inputs = trainer._prepare_inputs(dict(row))
            batch = trainer._staged_batch_of(inputs)
            task = None
            if any("loss" in term.loss.needs for term in terms_with_weight(losses.terms, t)):
                task = task_forward(trainer, trainer.compute_loss, trainer.model, inputs, False, batch.columns)
            found = weighted_loss(
                losses, trainer.model, batch, t, task, scales=self.scales, autocast=trainer.accelerator.autocast
            )
        except (ValueError, RuntimeError, TypeError, KeyError, IndexError) as error:  # a row alone may be no batch
            self.problem = self.problem or f"{type(error).__name__}: {error}"
            return None
        return None if found is None else float(found[0])


@contextmanager
def _without_a_trace(trainer: Any) -> Iterator[None]:
    """Leave modes, generators, counters and the batch at hand as they are."""
    devices = [trainer.args.device] if trainer.args.device.type == "cuda" else []
    held = trainer._staged_split_off
    with preserve_random_state(), torch.random.fork_rng(devices), preserve_trainer_notes(trainer), torch.no_grad():
        try:
            with evaluating(trainer.model):
                yield
        finally:
            trainer._staged_split_off = held
            if trainer.is_fsdp_enabled:
                _reshard(trainer.model)


def _reshard(model: Any) -> None:
    """Let sharded modules drop the weights that they gathered: the next forward must see what a step makes of them."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
