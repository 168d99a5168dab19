"""Distils in three stages: hidden states and attention, then everything, then logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_stages.core.duration import Duration
from hf_stages.core.stage import Recipe
from hf_stages.losses.base import Loss
from hf_stages.recipes.ready._parts import build_recipe, feature_losses, logit_losses


def three_stage(
    until: str | Duration | Sequence[str] = "6 epochs",
    *,
    layers: str | Sequence[int] | Mapping[int, int] | None = None,
    hidden: float | str | Loss = 1.0,
    attention: float | str | Loss = 1.0,
    logits: float | str | Loss = 1.0,
    task: float | str | Loss = 0.0,
    learning_rate: float | Sequence[float] | None = None,
    reduce: Sequence[int] | None = None,
) -> Recipe:
    """Distil hidden states and attention, then these and the logits, then the logits alone (the third plan in XTC).

    The arguments are those of all ready recipes: see ``hf_stages.recipes``.
    """
    features = feature_losses(hidden, attention, layers, reduce)
    answers = logit_losses(logits, task)
    return build_recipe(
        {"features": features, "all": [*features, *answers], "logits": answers},
        until=until,
        learning_rate=learning_rate,
        reduce=reduce,
    )
