"""Checks of monitors before the first step of a run: a monitor of a late stage must not fail hours later."""

from __future__ import annotations

from typing import Any

from hf_stages.core.stage import Stage
from hf_stages.core.stage_context import is_sharded
from hf_stages.losses.objective.terms import terms_of
from hf_stages.losses.task_loss import TaskLoss
from hf_stages.monitors.at_work import check_monitor
from hf_stages.monitors.base import WatchedRun
from hf_stages.planning.resolved import ResolvedRecipe


def check_monitors(resolved: ResolvedRecipe, args: Any, stage: Stage, model: Any) -> None:
    """Refuse monitors that cannot work in a stage, as far as its declaration and its model's shape tell.

    Args:
        resolved: The recipe with its datasets.
        args: The run's arguments.
        stage: The stage.
        model: The stage's model on the meta device; None where it is not known yet.
    """
    if model is None or not stage.monitors:
        return
    data = resolved[stage.name]
    loss = stage.loss if stage.loss is not None else TaskLoss()
    run = WatchedRun(
        model,
        args,
        where=f"stage {stage.name!r}: monitors",
        sources={leaf.name: leaf.dataset for leaf in data.dataset.leaves} if data.mixes else {},
        terms=tuple(term.name for term in terms_of(loss)),
        sharded=is_sharded(args),
    )
    for monitor in stage.monitors:
        check_monitor(monitor, run)
