"""Compute the loss of an evaluation over all its tokens.

Trainer averages the means of batches, so its number changes with the batch size: a batch of a few long answers counts
as much as one of many short answers. Here each mean is multiplied by the items it ran over, and the sum is divided
once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from hf_stages.data.evaluation_sets import depths_of, plain_set
from hf_stages.evaluation.losses_at_depths import losses_at_depths
from hf_stages.evaluation.padded_rows import count_unread_rows, first_rows
from hf_stages.evaluation.token_bytes import bytes_per_token
from hf_stages.losses.objective.mean_of_parts import MeanOfParts
from hf_stages.losses.objective.micro_batch_loss import replace_compute_loss
from hf_stages.losses.objective.task_probe import reduction_in_evaluation
from hf_stages.losses.objective.update_sums import give_item_count
from hf_stages.losses.task_loss import TaskLoss
from hf_stages.models.outputs import outputs_of

BYTES = "bytes"
"""The column of an evaluation set that says how many bytes of text each row stands for."""


class LossOverItems:
    """Sums over one evaluation of one set.

    Args:
        trainer: The trainer that evaluates.
        dataset: The set as the user gave it, with depths or without; a column ``bytes`` says how many bytes of text
            each row stands for.
    """

    def __init__(self, trainer: Any, dataset: Any) -> None:
        self.trainer, self.inner = trainer, trainer.compute_loss
        exact = torch.float32 if trainer.args.device.type == "mps" else torch.float64  # MPS has no float64
        self.totals = torch.zeros(3, dtype=exact, device=trainer.args.device)
        self.task = TaskLoss().for_models(trainer.model, None)
        self.parts: MeanOfParts | None = None
        self.values: dict[int, torch.Tensor] = {}
        """The values of the loss's parts in the batch at hand."""
        self.reduction_is_known = False
        self.is_code_length = _is_code_length(trainer)
        # Rows of a last batch that is dropped would count in their bytes alone.
        self.given_bytes = (
            _bytes_of_rows(plain_set(dataset))
            if self.is_code_length and not trainer.args.dataloader_drop_last
            else None
        )
        self.bytes_by_token = _bytes_by_token(trainer) if self.is_code_length and self.given_bytes is None else None
        known = trainer.__dict__
        self.counters = copy.deepcopy({name: known[name] for name in trainer.counter_names if name in known})
        """What the trainer counted before the evaluation."""
        self.at_depths = losses_at_depths(trainer.model, depths_of(dataset), self.totals)
        self.mean_of_unread_rows: torch.Tensor | None = None
        """The mean over those rows of the batch that are read for the first time, where the step in progress has it."""
        self.repeats_rows = False
        """Whether a batch is run once more only for its loss: over the rows that are new, or at another depth."""

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Add up every batch of the evaluation that runs within the block.

        The loss that counts is the one that the trainer's ``prediction_step`` returns, whether ``compute_loss``
        computed it or not: a Seq2SeqTrainer that generates takes its model's own.
        """
        trainer, held = self.trainer, self.trainer.__dict__.get("prediction_step")
        step = trainer.prediction_step
        trainer.prediction_step = lambda *args, **kwargs: self._step(step, *args, **kwargs)
        try:
            with replace_compute_loss(trainer, self.loss):
                yield
        finally:
            del trainer.prediction_step
            if held is not None:
                trainer.prediction_step = held

    def _step(self, step: Any, model: Any, inputs: Any, loss_only: bool, *args: Any, **kwargs: Any) -> Any:
        batch = dict(inputs)  # label smoothing takes the labels out
        self._find_reduction(batch)
        new, self.mean_of_unread_rows, self.values = count_unread_rows(self.trainer, batch), None, {}
        found = step(model, inputs, loss_only, *args, **kwargs)
        if found[0] is None:
            return found

        def loss_of_new(rows: Mapping[str, Any]) -> torch.Tensor | None:
            loss = self._repeat(step, model, rows, *args, **kwargs)
            return loss if new != 0 else None  # the one row of a rank without new ones has no say

        loss, rows = found[0], batch
        if new is not None:
            rows, loss = first_rows(batch, new), self.mean_of_unread_rows if new else None
            if self.mean_of_unread_rows is None:
                loss = loss_of_new(rows)
        self._add(loss, rows)
        if self.at_depths is not None:
            self.at_depths.add(lambda: self._sum(loss_of_new(rows), rows))
        return found

    def _repeat(self, step: Any, model: Any, rows: Mapping[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the model once more, without a trace in what the trainer counts by itself (TRL's entropy)."""
        counted = {name: self.trainer.__dict__[name] for name in self.counters}
        self.trainer.__dict__.update(copy.deepcopy(self.counters))
        self.repeats_rows = True
        try:
            return step(model, dict(rows), True, *args, **kwargs)[0]
        finally:
            self.repeats_rows = False
            self.trainer.__dict__.update(counted)

    def loss(self, inner: Callable[..., Any], model: Any, inputs: Mapping[str, Any], return_outputs: bool) -> Any:
        """Answer ``compute_loss`` for one batch. Without a number of items every trainer returns the batch's mean."""
        batch = self.trainer._staged_batch_of(inputs).columns
        # Rows that are repeated are chosen already. All ranks run the model equally often, as FSDP needs.
        new = None if self.repeats_rows else count_unread_rows(self.trainer, batch)
        if new is not None:  # before the forward of all rows, which is the one that others watch
            few = first_rows(batch, new)
            self.mean_of_unread_rows = self._run(inner, model, {key: few[key] for key in inputs}, few)
        return self._run(inner, model, inputs, batch, return_outputs, notes=new is None)

    def _run(
        self, inner: Any, model: Any, inputs: Any, batch: Any, return_outputs: bool = False, notes: bool = True
    ) -> Any:
        watch = self.parts.watching(self.values) if self.parts is not None and notes else nullcontext()
        with give_item_count(self.trainer, self.task.items(batch)), watch:
            return inner(model, inputs, return_outputs=return_outputs, num_items_in_batch=None)

    def _find_reduction(self, batch: Mapping[str, Any]) -> None:
        """Find out what the loss is a mean over, on the first batch that has a loss."""
        trainer = self.trainer
        if self.reduction_is_known or not (
            trainer.can_return_loss or any(batch.get(k) is not None for k in trainer.label_names)
        ):
            return
        found = reduction_in_evaluation(trainer, self.inner, self.task, batch)
        if found is False:
            return
        self.reduction_is_known = True
        self.task.set_reduction(found)
        if found is not None and found.split:
            self.parts = MeanOfParts(found, self.totals)
            if self.at_depths is not None:
                raise ValueError(
                    f"eval_dataset: AtDepths: the loss of {type(trainer.model).__name__} has several parts, each a "
                    "mean over items of its own, and is not measured by depth; evaluate on the dataset itself"
                )

    def _add(self, loss: torch.Tensor | None, batch: Mapping[str, Any]) -> None:
        if loss is None:
            return
        if self.parts is not None and self.values:
            self.parts.add(loss, self.values, batch)
        self.totals += torch.stack([self._sum(loss, batch), self._count(batch), self._bytes(batch)])

    def _count(self, batch: Mapping[str, Any]) -> torch.Tensor:
        return torch.as_tensor(self.task.items(batch)).to(self.totals)

    def _sum(self, loss: torch.Tensor | None, batch: Mapping[str, Any]) -> torch.Tensor:
        """Sum the loss over the batch's items. A batch without a target has a mean of 0/0 and no say."""
        if loss is None:
            return self.totals.new_zeros(())
        count = self._count(batch)
        mean = torch.as_tensor(loss).detach().mean().to(self.totals)
        return torch.where(count > 0, mean * (1 if self.task.summed else count), torch.zeros_like(count))

    def _mean_of_parts(self) -> tuple[float, float] | None:
        assert self.parts is not None
        if self.trainer.args.world_size > 1:
            torch.distributed.all_reduce(self.parts.totals)
        return self.parts.mean()

    def _bytes(self, batch: Mapping[str, Any]) -> torch.Tensor:
        labels: Any = batch.get("shift_labels")
        if labels is None:
            labels = batch.get("labels")
            labels = labels[..., 1:] if torch.is_tensor(labels) and self.task.shifts else labels
        if self.bytes_by_token is None or not torch.is_tensor(labels):
            return self.totals.new_zeros(())
        self.bytes_by_token = self.bytes_by_token.to(labels.device)
        return self.bytes_by_token[labels[labels.ne(-100)]].sum().to(self.totals)

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the loss, its items and, where bytes are known, bits per byte. All ranks call it.

        The result is empty where no batch had a loss.
        """
        totals = self.totals.clone()
        if self.trainer.args.world_size > 1:
            torch.distributed.all_reduce(totals)
        value, items, size = totals.tolist()
        if self.parts is not None and (whole := self._mean_of_parts()) is not None:
            return {f"{prefix}_loss": whole[0], f"{prefix}_items": whole[1]}
        if not items:
            return {}
        found = {f"{prefix}_loss": value / items, f"{prefix}_items": items}
        size = size if self.given_bytes is None else self.given_bytes
        if size:
            found[f"{prefix}_bits_per_byte"] = value / math.log(2) / size
        if self.at_depths is not None:
            found |= self.at_depths.metrics(prefix, items, size, is_code_length=self.is_code_length)
        return found


def _bytes_of_rows(dataset: Any) -> float | None:
    if BYTES not in (getattr(dataset, "column_names", None) or ()) or not hasattr(dataset, "__len__"):
        return None
    sizes = list(dataset[BYTES])
    # An image's column of this name holds the bytes themselves; a row without a number would make the sum too small.
    return float(sum(sizes)) if all(isinstance(size, int | float) for size in sizes) else None


def _is_code_length(trainer: Any) -> bool:
    """Tell whether the loss is a code length of the text. A masked model sees the text around what it predicts."""
    if trainer.args.label_smoothing_factor or trainer.compute_loss_func is not None:
        return False
    try:
        return outputs_of(trainer.model, "evaluation").kind in ("next", "decoder")
    except ValueError:  # no logits over classes: segmentation, detection
        return False


def _bytes_by_token(trainer: Any) -> torch.Tensor | None:
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    if tokenizer is None:
        return None
    size = outputs_of(trainer.model, "evaluation").classes or 0
    held = trainer.__dict__.setdefault("_bytes_per_token", {})
    key = (id(tokenizer), size, len(tokenizer) if hasattr(tokenizer, "__len__") else 0)
    if key not in held:
        held.clear()
        held[key] = bytes_per_token(tokenizer, size)
    return held[key]
