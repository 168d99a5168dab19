"""Check that TaskLoss by source, which is computed from the logits, equals the model's own loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hf_stages.core.randomness import preserve_random_state
from hf_stages.losses.objective.by_source import OnSource
from hf_stages.losses.objective.mean_of_parts import MeanOfParts
from hf_stages.losses.objective.task_trial import fill_zero_weights
from hf_stages.losses.objective.trainer_notes import preserve_trainer_notes
from hf_stages.losses.objective.update_sums import give_item_count
from hf_stages.models.capture import evaluating
from hf_stages.models.model_inputs import model_inputs
from hf_stages.models.signals import Signals

_OFF, _HALF = 1e-3, 2e-2
"""How far two computations of one loss may differ by rounding, relative; the second is for half precision."""


def own_loss_mismatch(trainer: Any, objective: Any, batch: Mapping[str, Any], *, half: bool) -> str | None:
    """Say what is wrong where TaskLoss by source would replace the model's own loss; None where the two are equal.

    They differ where the model weighs classes, smooths labels, sums, or computes a focal loss.
    """
    term = next(t.loss for t in objective.terms if isinstance(t.loss, OnSource) and t.loss.task is not None)
    batch = trainer._prepare_input(dict(batch))
    items = term.items(batch)
    if float(items) == 0:
        return None
    inputs = trainer._staged_split_batch(batch).inputs
    reduction, values = objective.reduction, dict[int, torch.Tensor]()
    watch = (
        MeanOfParts(reduction, torch.zeros(())).watching(values) if reduction is not None and reduction.adds else None
    )
    context = trainer.compute_loss_context_manager()
    with (
        preserve_random_state(),
        preserve_trainer_notes(trainer),
        torch.no_grad(),
        evaluating(trainer.model),
        context,
        fill_zero_weights(trainer.model),
    ):
        outputs = trainer.model(**model_inputs(trainer.model, inputs))
        by_source = float(term.mean_of_all(Signals(outputs), batch))
        with give_item_count(trainer, items):
            if watch is None:
                own = _loss(trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=None))
            else:  # what the model adds to its targets' mean is shared by items
                with watch:
                    trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=None)
                pairs = zip(reduction.calls, reduction.weights, strict=True)
                own = sum(weight * float(values[call].mean()) for call, weight in pairs)
    if abs(own - by_source) <= (_HALF if half else _OFF) * max(abs(own), 1e-6):
        return None
    return (
        "TaskLoss by source is computed from the logits (cross-entropy, squared error or binary cross-entropy), and "
        f"gives {by_source:.4g} where the model's own loss is {own:.4g} (class weights, smoothing, a sum, a "
        "compute_loss of its own?): it would train another loss. Use one loss for all sources, or a Loss of your own "
        "by source"
    )


def _loss(found: Any) -> float:
    return float(found[0] if isinstance(found, tuple) else found)
