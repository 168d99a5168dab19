"""Measure in evaluation what Trainer does not: the loss over all items, bits per byte, the teacher's terms."""

from __future__ import annotations

import inspect
import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from transformers import Trainer
from transformers.utils import logging

from hf_stages.data.evaluation_sets import plain_set, plain_sets
from hf_stages.data.stage_collator import for_source
from hf_stages.evaluation.loss_over_items import LossOverItems
from hf_stages.evaluation.per_domain import measured_as_its_stage_does
from hf_stages.evaluation.teacher_terms import BULKY

# The mixin's overrides call the next trainer's own; only a type checker may think that this is always Trainer.
_Base: Any = Trainer if TYPE_CHECKING else object


logger = logging.get_logger(__name__)


def _without_nan(metrics: dict[str, float], prefix: str) -> None:
    """Remove the loss of a set without a single label: NaN is within no budget, and no JSON."""
    if f"{prefix}_items" not in metrics and math.isnan(metrics.get(f"{prefix}_loss", 0.0)):
        del metrics[f"{prefix}_loss"]
        logger.warning(f"{prefix}: no row of this evaluation set has a label (all are -100), so it has no loss")


class EvaluationMixin(_Base):
    """The part of StagedMixin that evaluates. Without stages each override calls Trainer's own."""

    recipe: Any
    data_collator: Any
    eval_dataset: Any
    _stage: Any
    _sums: Any = None
    """The ``LossOverItems`` of an evaluation in progress."""
    _evaluated: Any = None
    """The set that is evaluated, as the user gave it."""
    _weighs_items = False
    """Whether evaluation gives the loss over all items, or Trainer's mean of batches (without stages)."""

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **kwargs):
        inner = super().prediction_step
        if self.recipe is None:
            return inner(model, inputs, prediction_loss_only, ignore_keys, **kwargs)
        if ignore_keys is None:
            ignore_keys = getattr(getattr(self.model, "config", None), "keys_to_ignore_at_inference", [])
        ignore_keys = [*ignore_keys, *BULKY]
        repeats_rows = self._sums is not None and self._sums.repeats_rows
        if self._stage is None or self._stage.measured.teacher_terms is None or repeats_rows:
            return inner(model, inputs, prediction_loss_only, ignore_keys, **kwargs)
        inputs = self._prepare_inputs(inputs)
        terms, t = self._stage.measured.teacher_terms, self._stage.t
        with terms.step(self._staged_batch_of(inputs), t, self.accelerator.autocast()):
            return inner(model, inputs, prediction_loss_only, ignore_keys, **kwargs)

    def evaluate(self, eval_dataset=None, *args, **kwargs):
        if self._stage is None or not isinstance(eval_dataset, str):
            return super().evaluate(eval_dataset, *args, **kwargs)
        with measured_as_its_stage_does(self, eval_dataset):
            return super().evaluate(eval_dataset, *args, **kwargs)

    def get_eval_dataloader(self, eval_dataset=None, **kwargs):
        if self._weighs_items:  # before columns that the model does not take are dropped
            self._evaluated = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
            self._evaluated = self.eval_dataset if self._evaluated is None else self._evaluated
        collator, sets = self.data_collator, self.eval_dataset
        try:
            if isinstance(eval_dataset, str) and self.recipe is not None:
                self.data_collator = for_source(collator, eval_dataset)
            self.eval_dataset = plain_sets(sets)
            return super().get_eval_dataloader(plain_set(eval_dataset), **kwargs)
        finally:
            self.data_collator, self.eval_dataset = collator, sets

    def evaluation_loop(self, *args, **kwargs):
        inner = super().evaluation_loop
        prefix = inspect.signature(inner).bind(*args, **kwargs).arguments.get("metric_key_prefix", "eval")
        self._sums = LossOverItems(self, self._evaluated) if self._weighs_items else None
        try:
            with self._sums.counting() if self._sums is not None else nullcontext():
                output = inner(*args, **kwargs)
            if self._stage is not None:
                self._stage.measured.last.set_measured()
            if self._sums is not None:
                output.metrics.update(self._sums.metrics(prefix))
                _without_nan(output.metrics, prefix)
        finally:
            self._sums = self._evaluated = None
        if self._stage is not None and self._stage.measured.teacher_terms is not None:
            output.metrics.update(self._stage.measured.teacher_terms.metrics(prefix))
        return output

    def _evaluate(self, *args, **kwargs):
        if self._stage is None:
            return super()._evaluate(*args, **kwargs)
        self._stage.set_progress()  # measured as it stands, not as the update began
        with self._stage.measured.last.measuring():
            metrics = super()._evaluate(*args, **kwargs)
        self._stage.measured.last.store(metrics)
        self._stage.after_evaluation(self.state, self.control)
        return metrics
