"""Pull the relations of tokens in queries, keys and values towards the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_stages.losses import _attention, _layers
from hf_stages.losses._width import heads_of, size_of
from hf_stages.losses.base import Loss, adapted
from hf_stages.models.attention_scores import without_autocast
from hf_stages.models.real_tokens import Tokens

_PARTS = {"Q": "query", "K": "key", "V": "value"}


@dataclass(frozen=True)
class AttentionRelation(Loss):
    """KL(teacher || student) of softmax(A Aᵀ) for A in queries, keys and values (MiniLMv2, BitDistill).

    Heads are joined and cut anew into ``heads`` relation heads, so widths and head counts may differ. The value is
    averaged over relation heads, summed over relations and layers, and averaged over real tokens. Padding and other
    examples of a packed row are left out; later tokens are not, in causal models either. Queries and keys are those
    that attention gets, after RoPE.

    >>> AttentionRelation(relations="V", heads=48).relations
    'V'
    """

    relations: str = "QKV"
    """Which of queries, keys and values are related: letters of ``QKV``."""
    layers: str | list[int] | dict[int, int] = field(default_factory=lambda: {-1: -1})
    """A layer map as in ``HiddenMSE``. The default is the last layer of both (MiniLM, BitDistill)."""
    heads: int | None = None
    """Relation heads; more make finer relations (MiniLMv2 takes 48). None: as many as the student has key heads."""
    form: str = "scaled"
    """``scaled``: divided by the root of the head's size (MiniLMv2); ``cosine``: normalized (BitDistill's code)."""
    temperature: float = 1.0
    """The number that relations are divided by before the softmax."""
    stack: str | None = None
    """``encoder`` or ``decoder`` where a model has both."""
    pairs: tuple[tuple[int, int], ...] = field(default=(), init=False, repr=False, compare=False)

    tokens = Tokens()
    uses_teacher = True

    def __post_init__(self) -> None:
        _layers.check(self.layers, "AttentionRelation: layers")
        if not self.relations or set(self.relations) - set(_PARTS) or len(set(self.relations)) < len(self.relations):
            raise ValueError(f"AttentionRelation: relations: expected letters of 'QKV', got {self.relations!r}")
        if self.form not in ("scaled", "cosine"):
            raise ValueError(f"AttentionRelation: form: expected 'scaled' or 'cosine', got {self.form!r}")
        if self.heads is not None and self.heads < 1:
            raise ValueError(f"AttentionRelation: heads: expected at least 1, got {self.heads}")
        if not self.temperature > 0:
            raise ValueError(f"AttentionRelation: temperature: expected more than 0, got {self.temperature}")

    def for_models(self, student: Any, teacher: Any) -> AttentionRelation:
        known = _attention.with_layer_pairs(self, student, teacher, same_heads=False)
        if self.heads is None:
            known = adapted(known, heads=heads_of(student, self.stack, keys=True))
        for whose, model in (("student", student), ("teacher", teacher)):
            for letter in self.relations:
                known._check_cut(heads_of(model, self.stack, keys=letter != "Q"), size_of(model, self.stack), whose)
        return known

    def tensors_read(self, captured: Mapping[str, Any]) -> Any:
        return _attention.tensors_of(self, captured, *(_PARTS[letter] for letter in self.relations))

    def items(self, batch: Mapping[str, Any]) -> Any:
        return self.tokens.items(batch)

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any], t: float) -> torch.Tensor:
        layers = []
        for mine, theirs in _attention.attention_pairs(self, student, teacher):
            weights = self.tokens.weights(batch, mine.query.transpose(1, 2))
            apart = self.tokens.same_example(batch)
            real = (weights > 0)[:, None, None, :] if apart is None else apart[:, None]
            found: Any = 0.0
            for letter in self.relations:
                logs = self._relation(getattr(mine, _PARTS[letter]), real, "student")
                with torch.no_grad():
                    targets = self._relation(getattr(theirs, _PARTS[letter]), real, "teacher")
                found = found + _attention.divergence(targets, logs).mean(1)
            layers.append((found * weights).sum())
        return torch.stack(layers)

    def _check_cut(self, heads: int, size: int, whose: str) -> None:
        assert self.heads is not None
        if heads * size % self.heads:
            raise ValueError(
                f"AttentionRelation: heads: the {whose}'s {heads} heads of {size} cannot be cut into {self.heads} "
                "relation heads; choose a divisor of both models' widths"
            )

    def _relation(self, states: torch.Tensor, real: torch.Tensor, whose: str) -> torch.Tensor:
        """Turn (batch, heads, tokens, size) into log relations (batch, relation heads, tokens, tokens)."""
        batch, heads, tokens, size = states.shape
        self._check_cut(heads, size, whose)
        assert self.heads is not None
        joined = states.float().transpose(1, 2).reshape(batch, tokens, self.heads, heads * size // self.heads)
        joined = joined.transpose(1, 2)
        if self.form == "cosine":
            joined = torch.nn.functional.normalize(joined, dim=-1)
        scale = 1.0 if self.form == "cosine" else joined.shape[-1] ** -0.5
        with without_autocast(joined):
            found = torch.matmul(joined, joined.transpose(2, 3)) * (scale / self.temperature)
        return _attention.masked_log_softmax(found, real)
