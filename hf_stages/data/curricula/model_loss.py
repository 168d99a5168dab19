"""Scores rows by how hard a model finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class ModelLoss:
    """Scores a row by its mean next-token loss under a causal language model.

    ``ByDifficulty("code", by=ModelLoss("out/01-language"))`` sorts by it. The model is loaded when the first row is
    scored, so it may be the result of an earlier stage of the same run.

    >>> ModelLoss("out/01-language", max_length=256).rows
    8
    """

    model: Any
    """A folder, a name on the Hub, or a model."""
    rows: int = 8
    """How many rows the model reads at a time."""
    max_length: int | None = None
    """How many tokens of a row the model reads. None: all."""

    def resolve(self, base: str | Path) -> ModelLoss:
        """Return a copy whose relative folder starts at ``base``, if it exists there."""
        found = Path(base) / self.model if isinstance(self.model, str) else None
        return replace(self, model=str(found)) if found is not None and found.exists() else self

    def __call__(self, rows: Sequence[Any]) -> list[float]:
        model = _loaded(self.model) if isinstance(self.model, str) else self.model
        was = model.training
        model.eval()
        try:
            with torch.no_grad():
                starts = range(0, len(rows), self.rows)
                return [
                    loss
                    for start in starts
                    for loss in _losses(model, rows[start : start + self.rows], self.max_length)
                ]
        finally:
            model.train(was)


@lru_cache(maxsize=1)
def _loaded(name: str) -> Any:
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return AutoModelForCausalLM.from_pretrained(name).to(device)
    except OSError as error:
        raise ValueError(f"ModelLoss: model: expected a folder or a name on the Hub, got {name!r}: {error}") from error


def _losses(model: Any, rows: Sequence[Any], limit: int | None) -> list[float]:
    ids = [
        torch.as_tensor(row["input_ids"], dtype=torch.long)[:limit] for row in rows
    ]  # an empty list has no type of its own
    if max(map(len, ids)) < 2:
        return [0.0] * len(ids)  # nothing is predicted
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(model.device)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(model.device)
    logits = model(input_ids=padded, attention_mask=mask).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), padded[:, 1:].flatten(), reduction="none")
    real = mask[:, 1:].float()
    return ((losses.view_as(real) * real).sum(1) / real.sum(1).clamp(min=1)).tolist()
