"""Attention distributions pulled towards the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_stages.losses import _attention, _layers
from hf_stages.losses._algebra import Loss
from hf_stages.losses._scores import both_visible, scores
from hf_stages.losses._signals import key_of
from hf_stages.losses._tokens import token_items


@dataclass(frozen=True)
class AttentionKL(Loss):
    """KL(teacher || student) of each query's attention over the keys it sees (MiniLM, MobileBERT): averaged over heads,
    summed over layers, averaged over real tokens as queries."""

    layers: str | list[int] | dict[int, int] = "uniform"
    """``uniform`` (TinyBERT), ``last``, ``skip`` (PKD), the teacher's layer for each of the student's, or {student: teacher}."""
    stack: str | None = None
    """``encoder`` or ``decoder`` where a model has both."""
    pairs: tuple[tuple[int, int], ...] = field(default=(), init=False, repr=False, compare=False)

    uses_teacher = True

    def __post_init__(self) -> None:
        _layers.check(self.layers, "AttentionKL: layers")

    def for_models(self, student: Any, teacher: Any) -> AttentionKL:
        return _attention.mapped(self, student, teacher)

    def used(self, captured: Mapping[str, Any]) -> Any:
        return _attention.parts(self, captured, "query", "key")

    def items(self, batch: Mapping[str, Any]) -> Any:
        return token_items(batch, self.stack)

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any], t: float) -> torch.Tensor:
        layers = []
        for s, other in self.pairs:
            mine, theirs = student[key_of("attention", s, self.stack)], teacher[key_of("attention", other, self.stack)]
            seen = both_visible(mine, theirs)
            logs = _attention.log_shares(scores(mine), seen)
            with torch.no_grad():
                targets = _attention.log_shares(scores(theirs), seen)
            layers.append(_attention.over_queries(_attention.divergence(targets, logs), batch, self.stack))
        return torch.stack(layers)
