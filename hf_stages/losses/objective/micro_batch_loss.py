"""Compute the loss of one micro-batch of a stage's update, around any ``compute_loss`` that the trainer has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from transformers import Trainer
from transformers.utils import logging

from hf_stages.losses.objective.loss_calls import Call, LossCalls
from hf_stages.losses.objective.student_forwards import TaskForward
from hf_stages.losses.objective.update_sums import give_item_count

logger = logging.get_logger(__name__)
_LIBRARIES = ("hf_stages", "transformers", "trl")
"""Libraries whose ``compute_loss`` gives the model's loss. A user's own may compute another."""


@contextmanager
def replace_compute_loss(trainer: Any, loss: Callable[..., Any]) -> Iterator[None]:
    """Let ``loss(inner, model, inputs, return_outputs)`` answer where Trainer's code calls ``compute_loss``.

    ``inner`` is the trainer's own ``compute_loss``: Trainer's, or the override of a class above or below the mixin.
    So an override gives the task's loss, and cannot leave out the stage's. Calls that it makes itself reach the
    original.
    """
    held, inner = trainer.__dict__.get("compute_loss"), trainer.compute_loss

    def own(*args: Any, **kwargs: Any) -> Any:
        _restore(trainer, held)
        try:
            return inner(*args, **kwargs)
        finally:
            trainer.compute_loss = asked

    def asked(model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        return loss(own, model, inputs, return_outputs)

    asked.held = held  # type: ignore[attr-defined]
    trainer.compute_loss = asked
    try:
        yield
    finally:
        _restore(trainer, held)


def _restore(trainer: Any, held: Any) -> None:
    """Restore what stood on the object itself: nothing, unless a user set it there."""
    if held is None:
        trainer.__dict__.pop("compute_loss", None)
    else:
        trainer.compute_loss = held


def update_loss(trainer: Any, inner: Any, model: Any, inputs: Any, return_outputs: bool) -> Any:
    """Compute the weighted sum of the terms. ``inner`` is called for the task's loss where a term needs it."""
    stage, batch = trainer._stage, trainer._staged_batch_of(inputs)
    objective = stage.objective
    task = None
    if objective.needs_task_loss:
        task = task_forward(trainer, inner, model, inputs, return_outputs, batch.columns)
    else:
        _warn_if_unused(trainer)
    student, teacher = stage.losses.signals(model, batch, objective.t, task=task, autocast=trainer.accelerator.autocast)
    total = objective.loss(student, teacher, batch.columns)
    return (total, student.outputs) if return_outputs else total


def task_forward(
    trainer: Any, inner: Any, model: Any, inputs: Any, return_outputs: bool, columns: Mapping[str, Any]
) -> TaskForward:
    """Describe how to run the trainer's own loss of a micro-batch."""
    objective = trainer._stage.objective
    is_overridden = own_compute_loss(trainer) is not Trainer.compute_loss
    if not is_overridden:  # a trainer's own loss may be of something else, as a reward's is of pairs
        _check_labels(trainer, columns)
    items, shares = objective.task_items(columns), _scaled_parts(objective, columns)

    def run(wanted: bool) -> tuple[Any, Any]:
        with shares:
            found = task_loss(trainer, inner, model, inputs, items, wanted)
        if isinstance(shares, LossCalls) and shares.count != objective.reduction.called > 0:
            _warn_of_other_parts(shares.count, objective.reduction.called)
        return found

    return TaskForward(run, items, is_overridden, return_outputs, objective.reads_outputs(columns))


def task_loss(trainer: Any, inner: Any, model: Any, inputs: Any, items: Any, wanted: bool) -> tuple[Any, Any]:
    """Return the task's mean loss over the micro-batch, and the outputs where they are wanted.

    Every trainer reports its mean where it is given no number of items.
    """
    try:
        with give_item_count(trainer, items):
            found = inner(model, inputs, return_outputs=wanted, num_items_in_batch=None)
    except TypeError as error:
        if "NoneType" not in str(error) or not overrides_compute_loss(trainer):
            raise
        raise ValueError(
            f"{type(trainer).__name__}.compute_loss: it fails where num_items_in_batch is None ({error}); give the "
            "mean over the batch there: the stage divides by the items of the whole update"
        ) from error
    if not wanted:
        return (found[0] if isinstance(found, tuple) else found), None
    if not isinstance(found, tuple) or len(found) != 2:
        raise ValueError(
            f"{type(trainer).__name__}.compute_loss: asked with return_outputs=True, as evaluation asks and losses "
            f"that read outputs; expected (loss, outputs), got {type(found).__name__}"
        )
    return found


def _scaled_parts(objective: Any, batch: Any) -> Any:
    """Scale each part of a model's loss, within the block, by the micro-batch's share of the part's own items."""
    shares = [float(share) for share in objective.part_shares(batch)]
    if all(share == 1.0 for share in shares):
        return nullcontext()
    by_call = dict(zip(objective.reduction.calls, shares, strict=True))

    def answer(place: int, call: Call) -> Any:
        share = by_call.get(place, 1.0)
        if share == 0.0:  # of nothing the mean is 0/0
            return call.arguments["input"].sum() * 0.0
        return call.value() * share

    return LossCalls(answer)


def own_compute_loss(trainer: Any) -> Any:
    """Return the trainer's own ``compute_loss``, set on the object or by its class, not what replaces it for now."""
    found = vars(trainer).get("compute_loss")
    while hasattr(found, "held"):
        found = found.held
    return found if found is not None else type(trainer).compute_loss


def overrides_compute_loss(trainer: Any) -> bool:
    """Tell whether ``compute_loss`` is a user's: set on the object, or by a class above or below the mixin."""
    theirs = [cls for cls in type(trainer).__mro__ if cls.__module__.split(".")[0] not in _LIBRARIES]
    on_object = own_compute_loss(trainer) is not type(trainer).compute_loss
    return on_object or any("compute_loss" in vars(cls) for cls in theirs)


def _warn_of_other_parts(found: int, expected: int) -> None:
    logger.warning_once(
        f"TaskLoss: the forward computes {found} losses in a batch where it computed {expected} in the stage's first "
        "one (heads whose targets some batches lack?): which part is which cannot be told, so accumulated "
        "micro-batches may weigh them otherwise than one batch"
    )


def _warn_if_unused(trainer: Any) -> None:
    terms = trainer._stage.losses.terms
    if overrides_compute_loss(trainer) and not any("loss" in term.loss.needs for term in terms):
        logger.warning_once(
            f"stage {trainer._stage.planned.name!r}: no TaskLoss is in its loss, so "
            f"{type(trainer).__name__}.compute_loss is not used; it trains by "
            f"{' + '.join(term.name for term in terms)}. Add TaskLoss() for both"
        )


def _check_labels(trainer: Any, batch: Any) -> None:
    if not trainer.label_names:  # of such a model (masked images) the loss has inputs of other names
        return
    if trainer.can_return_loss or any(batch.get(name) is not None for name in (*trainer.label_names, "shift_labels")):
        return
    raise ValueError(
        f"stage {trainer._stage.planned.name!r}: TaskLoss: the batch has no labels (expected "
        f"{', '.join(trainer.label_names)}; it has {', '.join(batch)}); add labels to the data, or use a loss that "
        "compares with a teacher"
    )
