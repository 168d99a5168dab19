"""Pull hidden states of chosen layers towards the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_stages.losses import _layers
from hf_stages.losses._width import width_of
from hf_stages.losses.base import Loss, adapted
from hf_stages.models.real_tokens import Tokens, tokens_entering
from hf_stages.models.signals import key_of


@dataclass(frozen=True)
class HiddenMSE(Loss):
    """Mean squared difference over the width, summed over layers, averaged over real tokens (TinyBERT, XTC).

    Hidden state i leaves block i, before any final norm of the model; hidden state 0 enters the first block.

    >>> HiddenMSE(layers={1: 2, 2: 4}, project="shared")
    HiddenMSE(layers={1: 2, 2: 4}, distance='mse', project='shared', stack=None)
    """

    layers: str | list[int] | dict[int, int] = "uniform"
    """``uniform`` (TinyBERT), ``last``, ``skip`` (PKD), a teacher's layer for each student's, or {student: teacher}."""
    distance: str = "mse"
    """``mse``, or ``cosine``: 1 - cosine similarity."""
    project: str | None = None
    """Where widths differ: ``each`` layer gets a learned projection of the student's state, or all a ``shared`` one."""
    stack: str | None = None
    """``encoder`` or ``decoder`` where a model has both."""
    pairs: tuple[tuple[int, int], ...] = field(default=(), init=False, repr=False, compare=False)

    tokens = Tokens()
    uses_teacher = True

    def __post_init__(self) -> None:
        _layers.check(self.layers, "HiddenMSE: layers")
        if self.distance not in ("mse", "cosine"):
            raise ValueError(f"HiddenMSE: distance: expected 'mse' or 'cosine', got {self.distance!r}")
        if self.project not in (None, "each", "shared"):
            raise ValueError(f"HiddenMSE: project: expected None, 'each' or 'shared', got {self.project!r}")

    def for_models(self, student: Any, teacher: Any) -> HiddenMSE:
        depths = _layers.depth_of(student, self.stack), _layers.depth_of(teacher, self.stack)
        found = _layers.pairs(self.layers, *depths, embeddings=True, where="HiddenMSE: layers")
        mine, theirs = width_of(student, self.stack), width_of(teacher, self.stack)
        modules = None
        if self.project is not None:
            modules = nn.ModuleDict({self._place(s): nn.Linear(mine, theirs) for s, _ in found})
        elif mine != theirs:
            raise ValueError(
                f"HiddenMSE: the student is {mine} wide, the teacher {theirs}; set project='shared' (or 'each'), or "
                "use AttentionRelation, which compares across widths"
            )
        return adapted(
            self,
            pairs=found,
            tokens=tokens_entering(student, self.stack),
            part_names=_layers.names_of(found),
            modules=modules,
            needs=frozenset(key_of("hidden", s, self.stack) for s, _ in found),
            teacher_needs=frozenset(key_of("hidden", t, self.stack) for _, t in found),
        )

    def projected_signals(self, captured: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.modules is None:
            return {}
        states = {s: captured[key_of("hidden", s, self.stack)] for s, _ in self.pairs}
        made = {}
        for s, state in states.items():
            linear = self.modules[self._place(s)]
            made[key_of("projected", s, self.stack)] = linear(state.to(linear.weight.dtype))
        return made

    def items(self, batch: Mapping[str, Any]) -> Any:
        return self.tokens.items(batch)

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any], t: float) -> torch.Tensor:
        kind = "hidden" if self.modules is None else "projected"
        layers = []
        for s, other in self.pairs:
            mine = student[key_of(kind, s, self.stack)].float()
            theirs = teacher[key_of("hidden", other, self.stack)].float()
            weights = self.tokens.weights(batch, mine)  # which says so where a model adds tokens
            if self.distance == "mse":
                apart = torch.nn.functional.mse_loss(mine, theirs, reduction="none").mean(-1)
            else:
                apart = 1.0 - torch.nn.functional.cosine_similarity(mine, theirs, dim=-1)
            layers.append((apart * weights).sum())
        return torch.stack(layers)

    def _place(self, layer: int) -> str:
        return "all" if self.project == "shared" else str(layer)
