"""Checks of evaluation at depths before the first step: the model is recurrent, and gates read what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hf_stages.core.depth_metrics import MEASURES, metric_at, split_depth
from hf_stages.core.placed_errors import place_errors
from hf_stages.core.stage import Stage
from hf_stages.data.evaluation_sets import depths_of
from hf_stages.gates.detectors.base import Detector
from hf_stages.layers.recurrent import at_depth, find_recurrence
from hf_stages.planning.domains import domains_of, own_domains, plain_name
from hf_stages.planning.resolved import ResolvedRecipe
from hf_stages.planning.stage_args import stage_args


def check_depths(resolved: ResolvedRecipe, args: Any, stage: Stage, model: Any) -> None:
    """Check a stage's depths against its model (None where it is not known yet), and its gates against the depths."""
    check_recurrence(own_domains(resolved[stage.name]), model, f"stage {stage.name!r}")
    unnamed = plain_name(resolved[stage.name])
    own = _measured(own_domains(resolved[stage.name]), unnamed)
    _check_comparisons(stage, args, own)
    known = domains_of(resolved, stage.name)
    later = own | _measured({name: known[name].dataset for name in known}, unnamed)
    best = stage_args(args, stage).metric_for_best_model or ""
    if stage_args(args, stage).greater_is_better and split_depth(best) is not None:
        raise ValueError(
            f"stage {stage.name!r}: metric_for_best_model={best!r}: less is better, and greater_is_better (which "
            "Trainer sets for every metric that does not end in 'loss') would keep the worst model; set "
            "greater_is_better=False"
        )
    for where, metric, at_end in _metrics_read(stage, args):
        read, measured = split_depth(metric), later if at_end else own
        if read is not None and metric not in measured:
            depths = sorted(depth for what, depth in map(split_depth, measured) if what == read[0])  # type: ignore[misc]
            found = (
                f"{read[0]} is measured at {', '.join(map(str, depths))}"
                if depths
                else "no evaluation set of the stage is an AtDepths that measures it"
            )
            raise ValueError(
                f"stage {stage.name!r}: {where}: {metric} is never measured: {found}; add the depth: "
                f"eval_dataset=AtDepths(dataset, depths=[..., {read[1]}])"
            )


def check_recurrence(sets: Mapping[str, Any], model: Any, where: str) -> None:
    """Refuse depths of a model without recurrence, or beyond what its recurrence allows.

    Args:
        sets: Evaluation sets by name.
        model: The stage's model, maybe without weights; None where it is not known yet.
        where: The stage, for the message.
    """
    for name, dataset in sets.items():
        depths = depths_of(dataset)
        if not depths or model is None:
            continue
        if find_recurrence(model) is None:
            raise ValueError(
                f"{where}: eval_dataset: AtDepths: {name!r} is to be measured at depths {', '.join(map(str, depths))}, "
                f"but {type(model).__name__} has no recurrent part there; add MakeRecurrent to the transforms of this "
                "stage or of one before it, or evaluate the stage on the dataset itself: Stage(..., eval_dataset=...)"
            )
        with place_errors(f"{where}: eval_dataset: AtDepths"), at_depth(model, max(depths)):
            pass


def _check_comparisons(stage: Stage, args: Any, measured: set[str]) -> None:
    """Refuse detectors that compare depths where there is nothing to compare."""
    for index, gate in enumerate(stage.gates):
        if not isinstance(gate, Detector) or not gate.compares_depths:
            continue
        where, of = f"stage {stage.name!r}: gates[{index}] {type(gate).__name__}", getattr(gate, "of", None)
        if str(getattr((strategy := stage_args(args, stage).eval_strategy), "value", strategy)) == "no":
            raise ValueError(f'{where}: it reads evaluations, but eval_strategy is "no"; set eval_strategy="steps"')
        named = "eval_loss" if of is None else f"eval_{of}_loss"
        depths = [found[1] for found in map(split_depth, measured) if found is not None and found[0] == named]
        if len(depths) < 2:
            sets = "the evaluation set" if of is None else f"the evaluation set {of!r}"
            others = sorted({found[0] for found in map(split_depth, measured) if found is not None} - {named})
            raise ValueError(
                f"{where}: it compares depths, but {sets} is not measured at several; set eval_dataset=AtDepths("
                f"dataset, depths=(1, 4, 8, 16, 32))"
                + (f", or of=... to read one of {', '.join(others)}" if others else "")
            )


def _measured(sets: Mapping[str, Any], unnamed: str | None) -> set[str]:
    """List the names of all that is measured at depths."""
    found = set()
    for name, dataset in sets.items():
        prefix = "eval" if name == unnamed else f"eval_{name}"
        found |= {metric_at(f"{prefix}_{what}", depth) for what in MEASURES for depth in depths_of(dataset)}
    return found


def _metrics_read(stage: Stage, args: Any) -> Iterator[tuple[str, str, bool]]:
    """Yield what reads a metric, the metric, and whether it is read at the stage's end, of all sets known then."""
    for index, gate in enumerate(stage.gates):
        if isinstance(metric := gate.metric_read, str):
            yield f"gates[{index}] {type(gate).__name__}", metric, gate.on == "end"
    own = stage_args(args, stage)
    if own.load_best_model_at_end and own.metric_for_best_model:
        yield "metric_for_best_model", f"eval_{own.metric_for_best_model.removeprefix('eval_')}", False
