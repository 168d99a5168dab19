"""Measure in evaluation, too, the terms that compare with a teacher: without labels nothing else shows progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from hf_stages.core.batch import SOURCE, Batch
from hf_stages.evaluation.padded_rows import count_unread_rows, first_rows
from hf_stages.layers.blocks import base_of
from hf_stages.losses.base import value_and_logged
from hf_stages.losses.objective.by_source import OnSource, signals_of_rows
from hf_stages.losses.objective.stage_losses import StageLosses
from hf_stages.losses.objective.student_forwards import meets_needs
from hf_stages.losses.objective.terms import needs_of
from hf_stages.models.real_tokens import rows_of
from hf_stages.models.signals import Signals

BULKY = (
    "hidden_states", "attentions", "past_key_values", "encoder_hidden_states", "decoder_hidden_states",
    "encoder_attentions", "decoder_attentions", "cross_attentions", "encoder_last_hidden_state", "image_hidden_states",
)  # fmt: skip
"""Outputs that no metric reads, and that would fill the memory if they were gathered over a dataset."""


class TeacherTerms:
    """Sums and items of each teacher term over one evaluation.

    Args:
        losses: The losses of the stage in progress.
        trainer: The trainer that evaluates.
    """

    def __init__(self, losses: StageLosses, trainer: Any) -> None:
        self.losses, self.trainer = losses, trainer
        device = trainer.args.device
        self.terms = [term for term in losses.terms if term.loss.uses_teacher]
        exact = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        most = max((len(term.loss.logged_names) for term in self.terms), default=0)
        self.totals = torch.zeros(len(self.terms), 2 + most, dtype=exact, device=device)
        """A row for each term: its value, its items, and what else it logs."""

    @contextmanager
    def step(self, batch: Batch, t: float, autocast: Any) -> Iterator[None]:
        """Measure the terms on one batch, whose forward of the student runs within the block."""
        if not self.terms or not self.losses.can_be_evaluated or not self._can_compare(batch.columns):
            yield
            return
        new = count_unread_rows(self.trainer, batch.columns)
        with torch.no_grad(), self.losses.watching_evaluation() as captured:
            yield
        with torch.no_grad(), autocast:
            student: Any = Signals(captured.pop("outputs", None), captured=captured)
            if not meets_needs(student, needs_of(self.terms)):  # a fused head gives no logits
                student = self.losses.whole_signals(self.trainer.model, batch)
            self._add(student, batch.columns, new, t)

    def _add(self, student: Signals | None, columns: Mapping[str, Any], new: int | None, t: float) -> None:
        if new is not None:
            total, columns = rows_of(columns), first_rows(columns, new)
            student = signals_of_rows(student, torch.arange(max(new, 1)), total)
        teacher = self.losses.teacher(columns)
        if new == 0:
            return
        for place, term in enumerate(self.terms):
            value, logged = value_and_logged(term.loss(student, teacher, columns, t))
            items = torch.as_tensor(term.loss.items(columns), device=self.totals.device)
            self.totals[place, :2] += torch.stack([value.sum().to(self.totals), items.to(self.totals)])
            if logged is not None:
                self.totals[place, 2 : 2 + len(logged)] += logged.to(self.totals)

    def _can_compare(self, columns: Mapping[str, Any]) -> bool:
        """Tell whether the batch has what terms by source and a decoder read. A generation is no forward to compare."""
        by_source = any(isinstance(term.loss, OnSource) for term in self.terms)
        decodes = getattr(base_of(self.losses.model).config, "is_encoder_decoder", False)
        decoded = {"labels", "decoder_input_ids", "decoder_inputs_embeds"} & columns.keys()
        return (SOURCE in columns or not by_source) and (bool(decoded) or not decodes)

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the mean of each term. All ranks call it."""
        totals, self.totals = self.totals, torch.zeros_like(self.totals)
        if self.trainer.args.world_size > 1 and self.terms:
            torch.distributed.all_reduce(totals)
        found = {}
        for term, (value, items, *logged) in zip(self.terms, totals.tolist(), strict=True):
            if items:
                found[f"{prefix}_{term.name}"] = value / items
                found |= {
                    f"{prefix}_{term.name}_{what}": one / items
                    for what, one in zip(term.loss.logged_names, logged, strict=False)
                }
        return found
