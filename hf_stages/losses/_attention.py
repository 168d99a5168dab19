"""What losses on attention share: pairs of layers, and what must be captured of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_stages.layers.blocks import blocks_of
from hf_stages.layers.recurrent import RecurrentCore, find_recurrence
from hf_stages.losses import _layers
from hf_stages.losses._width import heads_of
from hf_stages.losses.base import Loss, adapted
from hf_stages.models.real_tokens import Tokens, tokens_entering
from hf_stages.models.signals import Attention, key_of

_HIDDEN = -1e9


@dataclass(frozen=True)
class ScoreLoss(Loss):
    """The base of losses on attention scores, which go layer by layer and average over heads and real tokens."""

    layers: str | list[int] | dict[int, int] = "uniform"
    """``uniform`` (TinyBERT), ``last``, ``skip`` (PKD), a teacher's layer for each student's, or {student: teacher}."""
    stack: str | None = None
    """``encoder`` or ``decoder`` where a model has both."""
    pairs: tuple[tuple[int, int], ...] = field(default=(), init=False, repr=False, compare=False)

    tokens = Tokens()
    uses_teacher = True

    def __post_init__(self) -> None:
        _layers.check(self.layers, f"{self.name}: layers")

    def for_models(self, student: Any, teacher: Any) -> Any:
        return with_layer_pairs(self, student, teacher)

    def tensors_read(self, captured: Mapping[str, Any]) -> Any:
        return tensors_of(self, captured, "query", "key")

    def items(self, batch: Mapping[str, Any]) -> Any:
        return self.tokens.items(batch)

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any], t: float) -> torch.Tensor:
        distances = (self.layer_distance(mine, theirs) for mine, theirs in attention_pairs(self, student, teacher))
        return torch.stack([sum_over_queries(distance, batch, self.tokens) for distance in distances])

    def layer_distance(self, student: Attention, teacher: Attention) -> torch.Tensor:
        """Measure how far one layer is off: (batch, heads, queries)."""
        raise NotImplementedError(f"{self.name} must define layer_distance(student, teacher)")


def attention_pairs(loss: Any, student: Any, teacher: Any) -> Iterator[tuple[Attention, Attention]]:
    """Give the attention of each pair of layers, the student's and the teacher's."""
    for one, other in loss.pairs:
        mine, theirs = student[key_of("attention", one, loss.stack)], teacher[key_of("attention", other, loss.stack)]
        seen = [[states.shape[-2] for states in (layer.query, layer.key)] for layer in (mine, theirs)]
        if seen[0] != seen[1]:
            raise ValueError(
                f"{loss.name}: {' tokens that look at '.join(map(str, seen[0]))} in the student, "
                f"{' that look at '.join(map(str, seen[1]))} in the teacher: a model that adds tokens or keys (prompt "
                "and prefix tuning) cannot be compared by its attention; use LogitKL on classes, or HiddenMSE beside "
                "prefixes"
            )
        yield mine, theirs


def with_layer_pairs(loss: Any, student: Any, teacher: Any, *, same_heads: bool = True) -> Any:
    """Return the loss with its layer pairs and needs for these models."""
    name = type(loss).__name__
    depths = _layers.depth_of(student, loss.stack), _layers.depth_of(teacher, loss.stack)
    found = _layers.pairs(loss.layers, *depths, embeddings=False, where=f"{name}: layers")
    _refuse_core(name, "student", student, [mine for mine, _ in found], loss.stack)
    _refuse_core(name, "teacher", teacher, [theirs for _, theirs in found], loss.stack)
    if same_heads and (heads := (heads_of(student, loss.stack), heads_of(teacher, loss.stack)))[0] != heads[1]:
        raise ValueError(
            f"{name}: the student has {heads[0]} attention heads, the teacher {heads[1]}; use AttentionRelation, which "
            "compares across head counts, or leave attention out (in a ready recipe: attention=AttentionRelation() or "
            "attention=0)"
        )
    return adapted(
        loss,
        pairs=found,
        tokens=tokens_entering(student, loss.stack),
        part_names=_layers.names_of(found),
        needs=frozenset(key_of("attention", s, loss.stack) for s, _ in found),
        teacher_needs=frozenset(key_of("attention", t, loss.stack) for _, t in found),
    )


def _refuse_core(name: str, whose: str, model: Any, layers: list[int], stack: str | None) -> None:
    """Refuse a recurrent core among the layers: it attends in each of its blocks and cycles."""
    if not isinstance(model, nn.Module) or find_recurrence(model) is None:
        return
    blocks = blocks_of(model, stack)
    if met := [layer for layer in layers if isinstance(blocks[layer - 1], RecurrentCore)]:
        raise ValueError(
            f"{name}: layers: the {whose}'s layer {met[0]} is a recurrent core, which attends anew in each block and "
            "cycle; say layers={student: teacher} without it"
        )


def tensors_of(loss: Any, captured: Mapping[str, Any], *names: str) -> list[torch.Tensor]:
    """Return the tensors of these names from the student's mapped layers."""
    layers = [captured[key] for key in loss.needs if key in captured]
    return [getattr(layer, name) for layer in layers for name in names]


def masked_log_softmax(values: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
    """Compute log-softmax over visible keys. Hidden ones get a large negative number, as -inf would lead to NaN."""
    if seen is not None:
        values = values.masked_fill(~seen, _HIDDEN)
    return torch.log_softmax(values, dim=-1)


def divergence(targets: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
    """Compute KL(targets || logs) over the last dimension, both given as logarithms."""
    return torch.nn.functional.kl_div(logs, targets, reduction="none", log_target=True).sum(-1)


def sum_over_queries(distances: torch.Tensor, batch: Mapping[str, Any], tokens: Tokens) -> torch.Tensor:
    """Average (batch, heads, queries) over heads, and sum over the queries that are real tokens."""
    mean = distances.mean(1)
    return (mean * tokens.weights(batch, mean)).sum()
