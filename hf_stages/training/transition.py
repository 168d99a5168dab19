"""What happens to the model at a boundary: transforms in order, with the way of the moments and the checks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.utils import logging

from hf_stages.core.randomness import undisturbed
from hf_stages.layers.activations import Activations
from hf_stages.planning.plan import PlannedStage

logger = logging.get_logger(__name__)
_PROBED = 4
"""Examples that a claim to keep the function is checked on."""


@dataclass
class Transition:
    """A changed model, where its old parameters went, and how far each function-keeping claim was off."""

    model: Any
    moves: dict[str, list[str]]
    deviations: dict[str, float | None] = field(default_factory=dict)
    """Largest relative difference of outputs by transform; None where it could not be measured."""


def transition(trainer: Any, model: Any, planned: PlannedStage) -> Transition:
    """Apply a stage's transforms. Errors name the stage and the transform."""
    names = [name for name, _ in model.named_parameters()]
    change = Transition(model, {name: [name] for name in names})
    batch = _probe(trainer, planned) if any(t.keeps_function for t in planned.stage.transforms) else None
    for index, transform in enumerate(planned.stage.transforms):
        label = type(transform).__name__
        before = _outputs(change.model, batch) if transform.keeps_function else None
        try:
            change.model = transform(change.model)
        except ValueError as error:
            raise ValueError(f"stage {planned.name!r}: transforms[{index}] {label}: {error}") from error
        if transform.keeps_function:
            key = label if label not in change.deviations else f"{label}_{index}"
            change.deviations[key] = _deviation(before, _outputs(change.model, batch))
        after = [name for name, _ in change.model.named_parameters()]
        step = transform.moves(names, after)
        change.moves = {old: [n for m in news for n in step.get(m, [])] for old, news in change.moves.items()}
        names = after
    return change


def _probe(trainer: Any, planned: PlannedStage) -> Any:
    """A few real examples, as the model will see them."""
    dataset = trainer.train_dataset if planned.size.examples is not None else trainer.eval_dataset
    if dataset is None or isinstance(dataset, dict) or not hasattr(dataset, "__len__"):
        return None
    few = torch.utils.data.Subset(dataset, range(min(_PROBED, len(dataset))))
    try:
        with undisturbed():
            return next(iter(trainer.get_eval_dataloader(few)))
    except Exception as error:  # the stage's data may fit only the model it is about to become
        logger.info(f"stage {planned.name!r}: no batch to check the transforms on ({error})")
        return None
    finally:
        # With persistent workers Trainer would go on to evaluate on these few.
        trainer.__dict__.pop("_eval_dataloaders", None)


def _outputs(model: Any, batch: Any) -> torch.Tensor | None:
    if batch is None:
        return None
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), undisturbed(), _unrounded(model):
            return _logits(model(**batch)).float()
    except Exception as error:
        logger.info(f"no output to compare: {error}")
        return None
    finally:
        model.train(training)


@contextmanager
def _unrounded(model: Any) -> Iterator[None]:
    """Without rounding of activations: a weight's last bit may move a code by one, which no transform answers for."""
    held = [(m, m.activations) for m in model.modules() if isinstance(getattr(m, "activations", None), Activations)]
    try:
        for module, _ in held:
            module.activations = None
        yield
    finally:
        for module, activations in held:
            module.activations = activations


def _logits(outputs: Any) -> torch.Tensor:
    return outputs["logits"] if "logits" in outputs else outputs[0]


def _deviation(before: torch.Tensor | None, after: torch.Tensor | None) -> float | None:
    if before is None or after is None or before.shape != after.shape:
        return None
    return ((after - before).abs().max() / before.abs().max().clamp(min=1e-12)).item()
