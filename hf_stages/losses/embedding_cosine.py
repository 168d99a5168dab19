"""Turn sentence embeddings towards the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_stages.losses._width import width_of
from hf_stages.losses.base import Loss, adapted
from hf_stages.models.real_tokens import Tokens, tokens_entering


@dataclass(frozen=True)
class EmbeddingCosine(Loss):
    """1 - cosine similarity of pooled outputs, averaged over rows: for sentence encoders (``AutoModel``s).

    With ``pooling="pooler"`` it reads ``sentence_embedding`` or ``pooler_output``, else it pools ``last_hidden_state``.

    >>> EmbeddingCosine(pooling="first")
    EmbeddingCosine(pooling='first')
    """

    pooling: str = "mean"
    """``mean`` over real tokens, the ``first`` token (CLS), the ``last`` real one, or the model's own ``pooler``."""

    needs = frozenset({"outputs"})
    teacher_needs = frozenset({"outputs"})
    tokens = Tokens()
    uses_teacher = True

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "first", "last", "pooler"):
            raise ValueError(
                f"EmbeddingCosine: pooling: expected 'mean', 'first', 'last' or 'pooler', got {self.pooling!r}"
            )

    def for_models(self, student: Any, teacher: Any) -> EmbeddingCosine:
        mine, theirs = width_of(student, None), width_of(teacher, None)
        if mine != theirs:
            raise ValueError(
                f"EmbeddingCosine: the student's embeddings have {mine} numbers, the teacher's {theirs}; expected the "
                "same, or use HiddenMSE(project='each')"
            )
        return adapted(self, tokens=tokens_entering(student, None))

    def items(self, batch: Mapping[str, Any]) -> Any:
        return self.tokens.rows(batch)

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any], t: float) -> torch.Tensor:
        mine, theirs = self._pooled(student.outputs, batch, "student"), self._pooled(teacher.outputs, batch, "teacher")
        apart = 1.0 - torch.nn.functional.cosine_similarity(mine, theirs, dim=-1)
        return apart.sum() * (self.items(batch) / max(len(apart), 1))  # several images of an example count once

    def _pooled(self, outputs: Any, batch: Mapping[str, Any], whose: str) -> torch.Tensor:
        for name in ("sentence_embedding", "pooler_output") if self.pooling == "pooler" else ():
            if outputs.get(name) is not None:
                return outputs[name].float()
        states = outputs.get("last_hidden_state")
        if states is None or self.pooling == "pooler":
            wanted = "pooler_output" if self.pooling == "pooler" else "last_hidden_state"
            raise ValueError(
                f"EmbeddingCosine: the {whose} returned no {wanted}, only {', '.join(outputs)}; use an encoder "
                "without a task head (AutoModel), or another loss"
            )
        states = states.float()
        if self.pooling == "first":
            return states[:, 0]
        weights = self.tokens.weights(batch, states)
        if self.pooling == "mean":
            return (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1e-9)
        places = torch.arange(1, weights.shape[1] + 1, device=weights.device)
        last = (weights.ne(0) * places).argmax(1)  # right or left padded
        return states[torch.arange(len(states), device=states.device), last]
