"""Distils in one stage: hidden states, attention and logits together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_stages.core.duration import Duration
from hf_stages.core.stage import Recipe
from hf_stages.losses.base import Loss
from hf_stages.recipes.ready._parts import build_recipe, feature_losses, logit_losses


def one_stage(
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
    """Distil hidden states, attention and logits at once, from the first step to the last (TernaryBERT).

    XTC found that this does as well as several stages if the run is long and the data is enough.

    The arguments are those of all ready recipes: see ``hf_stages.recipes``.
    """
    features = feature_losses(hidden, attention, layers, reduce)
    answers = logit_losses(logits, task)
    return build_recipe({"all": [*features, *answers]}, until=until, learning_rate=learning_rate, reduce=reduce)
