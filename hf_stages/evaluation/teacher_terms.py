"""Terms that compare with a teacher, measured in evaluation too: a stage without labels has no other sign of progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from hf_stages.core.batch import SOURCE
from hf_stages.evaluation.padded_rows import first_rows, new_rows
from hf_stages.layers.blocks import base_of
from hf_stages.losses.base import value_and_told
from hf_stages.losses.objective.by_source import OnSource, of_rows
from hf_stages.losses.objective.stage_losses import StageLosses, needs_of
from hf_stages.losses.objective.student_forwards import serves
from hf_stages.models.real_tokens import rows_of
from hf_stages.models.signals import Signals

BULKY = (
    "hidden_states", "attentions", "past_key_values", "encoder_hidden_states", "decoder_hidden_states",
    "encoder_attentions", "decoder_attentions", "cross_attentions", "encoder_last_hidden_state", "image_hidden_states",
)  # fmt: skip
"""Outputs that no metric reads and that gathered over a dataset fill the memory."""


class EvalTerms:
    """Sums and items of each teacher term over one evaluation."""

    def __init__(self, losses: StageLosses, trainer: Any) -> None:
        self.losses, self.trainer = losses, trainer
        device = trainer.args.device
        self.terms = [term for term in losses.terms if term.loss.uses_teacher]
        exact = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        most = max((len(term.loss.tells) for term in self.terms), default=0)
        self.totals = torch.zeros(len(self.terms), 2 + most, dtype=exact, device=device)
        """Of each term: its value, its items, and what else it tells."""

    @contextmanager
    def step(self, batch: Mapping[str, Any], t: float, context: Any) -> Iterator[None]:
        """Around one forward of the student, which keeps its outputs whole."""
        if not self.terms or not self.losses.evaluates or not self._tells(batch):
            yield
            return
        new = new_rows(self.trainer, batch)
        with torch.no_grad(), self.losses.watching(whole=True) as captured:
            yield
        with torch.no_grad(), context:
            student: Any = Signals(captured.pop("outputs", None), captured=captured)
            if not serves(student, needs_of(self.terms)):  # a fused head gives no logits
                with self.losses.watching(whole=True) as captured:
                    self.losses.student(self.trainer.model, batch)
                student = Signals(captured.pop("outputs"), captured=captured)
            if new is not None:
                total, batch = rows_of(batch), first_rows(batch, new)
                student = of_rows(student, torch.arange(max(new, 1)), total)
            teacher = self.losses.teacher(batch)
            if new == 0:
                return
            for place, term in enumerate(self.terms):
                value, told = value_and_told(term.loss(student, teacher, batch, t))
                items = torch.as_tensor(term.loss.items(batch), device=self.totals.device)
                self.totals[place, :2] += torch.stack([value.sum().to(self.totals), items.to(self.totals)])
                if told is not None:
                    self.totals[place, 2 : 2 + len(told)] += told.to(self.totals)

    def _tells(self, batch: Mapping[str, Any]) -> bool:
        """Whether the batch has what terms by source need, and what a decoder reads: generation is no forward to compare."""
        by_source = any(isinstance(term.loss, OnSource) for term in self.terms)
        decodes = getattr(base_of(self.losses.model).config, "is_encoder_decoder", False)
        decoded = {"labels", "decoder_input_ids", "decoder_inputs_embeds"} & batch.keys()
        return (SOURCE in batch or not by_source) and (bool(decoded) or not decodes)

    def metrics(self, prefix: str) -> dict[str, float]:
        """The mean of each term; collective."""
        totals, self.totals = self.totals, torch.zeros_like(self.totals)
        if self.trainer.args.world_size > 1 and self.terms:
            torch.distributed.all_reduce(totals)
        found = {}
        for term, (value, items, *told) in zip(self.terms, totals.tolist(), strict=True):
            if items:
                found[f"{prefix}_{term.name}"] = value / items
                found |= {
                    f"{prefix}_{term.name}_{what}": one / items
                    for what, one in zip(term.loss.tells, told, strict=False)
                }
        return found
