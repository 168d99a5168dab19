"""A stage's monitors at work: what they may look at, and the terms of its loss as they see them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from hf_stages.data.drawing.blend import Blend
from hf_stages.data.evaluation_sets import plain_set
from hf_stages.data.source_column import SourceCollator
from hf_stages.losses.objective.terms import terms_with_weight
from hf_stages.monitors.at_work import Monitoring
from hf_stages.monitors.base import WatchedRun
from hf_stages.monitors.probe_batch import probe_batch


def begin_monitors(stage: Any) -> Monitoring:
    """Let the monitors of a StageRun begin to watch, or go on where the stage was cut. The model is in its place."""
    declared = stage.planned.stage.monitors
    if not declared:
        return Monitoring()
    trainer, blend = stage.trainer, stage.feed.data.blend
    run = WatchedRun(
        trainer.model,
        trainer.args,
        where=f"stage {stage.planned.name!r}: monitors",
        collated=partial(_collated, trainer),
        sources={leaf.name: leaf.dataset for leaf in blend.leaves} if blend is not None else {},
        terms=tuple(term.name for term in stage.objective.terms),
        autocast=trainer.accelerator.autocast,
        scaler=trainer.accelerator.scaler,
        sharded=trainer.is_fsdp_enabled,
    )
    monitors = Monitoring(declared, run, stage.progress.steps)
    states = stage.resumed.state.get("monitors") if stage.resumed is not None else None
    if states is not None:
        monitors.load_state_dict(states[trainer.args.process_index])
    return monitors


def weighted_terms(stage: Any, logged: Mapping[str, float]) -> dict[str, float]:
    """Return how much each term gave to the loss since the last log, where there are several terms."""
    objective = stage.objective
    weighted = {term.name for term in terms_with_weight(objective.terms, objective.t)}
    return {
        term.name: logged[f"loss_{term.name}"] * term.weight(objective.t) * logged.get(f"scale_{term.name}", 1.0)
        for term in objective.terms
        if term.name in weighted and f"loss_{term.name}" in logged
    }


def _collated(trainer: Any, dataset: Any, count: int) -> Mapping[str, Any]:
    """Make a batch of the first rows of a dataset; None is what is evaluated, else what is trained on."""
    collator = trainer.data_collator
    if isinstance(collator, SourceCollator):
        collator = collator.inner
    rows = plain_set(_own_dataset(trainer) if dataset is None else dataset)
    return probe_batch(trainer, collator, rows, count)


def _own_dataset(trainer: Any) -> Any:
    """Return the evaluation set, the first of several; else what is trained on, of a mixture its first source."""
    sets = trainer.eval_dataset
    found = next(iter(sets.values()), None) if isinstance(sets, dict) else sets
    found = trainer.train_dataset if found is None else found
    return found.leaves[0].dataset if isinstance(found, Blend) else found
