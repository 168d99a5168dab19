"""An estimate of how long a run will take: a few updates of each stage, timed with random weights."""

from __future__ import annotations

import copy
import itertools
import tempfile
import time
from typing import Any

import torch
from transformers import Trainer

from hf_stages.core.randomness import preserve_random_state
from hf_stages.planning.plan import Plan, PlannedStage

_WARM, _TIMED = 1, 3


def estimate_seconds(plan: Plan, prepared: Any) -> dict[str, float]:
    """Estimate the seconds of each stage: forward, backward and AdamW on its own batches. Equal stages are timed once.

    Losses other than the model's own, teachers and evaluation are left out, so the true time is longer.
    """
    seconds: dict[str, float] = {}
    known: dict[Any, float] = {}
    for planned in plan.stages:
        chain = [transform for one in plan.lineage(planned.name) for transform in one.stage.transforms]
        dataset = plan.resolved[planned.name].dataset
        key = (repr(chain), id(dataset), planned.size.batch, planned.size.accumulation)
        if key not in known:
            with preserve_random_state():
                known[key] = _seconds_per_update(planned, dataset, chain, prepared)
        seconds[planned.name] = known[key] * planned.steps
    return seconds


def _seconds_per_update(planned: PlannedStage, dataset: Any, chain: list[Any], prepared: Any) -> float:
    model = prepared.fresh_model()
    for transform in chain:
        model = transform(model)
    with tempfile.TemporaryDirectory() as folder:
        args = copy.copy(prepared.args)
        args.output_dir, args.report_to = folder, []
        args.per_device_train_batch_size = planned.size.batch
        own = prepared.collator() if planned.stage.data_collator is None else planned.stage.data_collator
        collator = own.build(prepared.tokenizer, model) if hasattr(own, "build") else own
        trainer = Trainer(
            model,
            args,
            train_dataset=dataset,
            data_collator=collator,
            processing_class=prepared.tokenizer,
        )
        return _time_updates(trainer, planned.size.accumulation)


def _time_updates(trainer: Trainer, accumulation: int) -> float:
    model = trainer.accelerator.prepare(trainer.model)
    trainer.current_gradient_accumulation_steps = accumulation  # Trainer's own loop sets it
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    batches = list(itertools.islice(trainer.get_train_dataloader(), _WARM + _TIMED))
    backward, steps = [], []
    for batch in batches:
        start = _clock()
        trainer.training_step(model, batch)
        middle = _clock()
        optimizer.step()
        optimizer.zero_grad()
        backward.append(middle - start)
        steps.append(_clock() - middle)
    skip = _WARM if len(batches) > _WARM else 0
    return accumulation * _mean(backward[skip:]) + _mean(steps[skip:])


def _clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
