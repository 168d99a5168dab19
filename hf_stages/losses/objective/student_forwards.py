"""Which forward of the student a stage's terms read, where the trainer computes its loss in a way of its own.

Trainer's ``compute_loss`` runs the model once: the loss and what other terms read come from there. An override may run it
twice, or fuse the head with the loss, so that there are no logits with a graph (TRL's SFTTrainer). What a term needs and that
forward does not give comes from one more forward of the student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from hf_stages.losses.objective.stage_losses import needs_of
from hf_stages.losses.objective.terms import weighted
from hf_stages.models.capture import WHOLE
from hf_stages.models.signals import Signals


def task_signals(
    trainer: Any,
    take: Callable[[bool], tuple[Any, Any]],
    model: Any,
    inputs: Any,
    batch: Any,
    *,
    asked: bool,
    own_way: bool,
) -> Signals:
    """The trainer's own loss of a micro-batch, and what the other terms need of the student.

    ``take`` gives the loss and, where they are wanted, outputs; ``own_way`` says that it is not Trainer's that computes it.
    """
    objective, losses = trainer._stage.objective, trainer._stage.losses
    others = [term for term in weighted(objective.terms, objective.t) if term.loss.needs != {"loss"}]
    needs, reads = needs_of(others), objective.reads_outputs(batch)
    # Outputs are asked for only where a term reads them and the model's own are not seen anyway: a fused head makes them in
    # one more forward.
    seen = own_way and losses.capture is not None and "outputs" not in needs
    wanted = asked or (reads and not seen)
    given = dict(inputs)  # the trainer may take labels out
    with losses.watching(objective.t, outputs=seen) as captured:
        loss, outputs = take(wanted)
    outputs = outputs if wanted else captured.pop("outputs", None)
    signals = Signals(outputs, loss, captured)
    if not (own_way and reads) or _trainable(signals, needs, float(objective.task_items(batch))):
        return signals
    with trainer.accelerator.autocast():
        losses.prepare(given, objective.t, needs)
    with losses.watching(objective.t, terms=others) as captured:
        outputs = losses.student(model, given)
    return Signals(outputs, loss, captured)


def serves(signals: Signals, needs: frozenset[str], *, graph: bool = False) -> bool:
    """Whether all that is needed of a forward was there: what hooks keep, and logits among the outputs."""
    if not needs - WHOLE - {"final"} <= signals.captured.keys():
        return False
    if "outputs" in needs and not _tensors(signals.outputs, graph=graph):
        return False
    return (
        not needs & {"logits", "final"}
        or "head" in signals.captured
        or _tensors(signals.outputs, "logits", graph=graph)
    )


def _trainable(signals: Signals, needs: frozenset[str], items: float) -> bool:
    """Whether a forward with a graph gave it all. Without an item, the loss of zero hangs on the outputs."""
    return serves(signals, needs, graph=True) and (items > 0 or _tensors(signals.outputs, graph=True))


def _tensors(outputs: Any, name: str = "", *, graph: bool = False) -> bool:
    """Whether a model's outputs hold a tensor of several numbers, under such a name if they have names."""
    if isinstance(outputs, Mapping):
        outputs = [value for key, value in outputs.items() if key.endswith(name)]
    return any(torch.is_tensor(one) and one.dim() and (one.requires_grad or not graph) for one in outputs or ())
