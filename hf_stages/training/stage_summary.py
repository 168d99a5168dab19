"""What ``stage.json`` says of a stage: what was declared, what it became, what it took, what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from hf_stages.core.parts import part_to_dict
from hf_stages.core.sealed_folders import SCHEMA, SEAL, checksum_file
from hf_stages.core.stage import Stage
from hf_stages.core.version import __version__
from hf_stages.layers.bits import stored_size_or_none
from hf_stages.planning.domains import by_domain, domains_of, plain_name, trained_on
from hf_stages.planning.resolved import ResolvedRecipe
from hf_stages.recipes.files import to_dict
from hf_stages.reports.cards.model_card import began_with
from hf_stages.training.manifest import Manifest
from hf_stages.training.stage.stage_rates import group_rates
from hf_stages.training.stage.stage_run import StageRun
from hf_stages.training.trainer_counters import counters_of

_TIMED = ("_runtime", "_per_second", "train_runtime", "items")


def stage_summary(
    run: StageRun,
    manifest: Manifest,
    *,
    metrics: Mapping[str, float],
    transforms: Sequence[Any],
    deviations: Mapping[str, float | None],
) -> dict[str, Any]:
    """Sum a stage up that has ended.

    Args:
        run: The stage, whose trainer still holds its model and optimizer.
        manifest: What the run declared.
        metrics: What evaluation said at the stage's end.
        transforms: All that the initial model went through, up to this stage.
        deviations: How far transforms that claim to keep the model's function were off.
    """
    trainer, planned, resolved = run.trainer, run.planned, manifest.plan.resolved
    return {
        "schema": SCHEMA,
        "index": planned.index,
        "name": planned.name,
        "stage": to_dict(planned.stage),
        "declared": manifest.declared(planned.name),
        "parents": _parents(manifest, planned.parent),
        "transforms": [part_to_dict(transform, "transforms") for transform in transforms],
        "base": trainer.blueprint.to_dict(),
        "began_with": began_with(manifest.described.get("model"), trainer.blueprint.config),
        "steps": run.progress.steps,
        "tokens": run.progress.tokens,
        "seconds": round(run.progress.seconds, 3),
        "global_step": trainer.state.global_step,
        **_rates(run),
        "taught_by": _teacher(planned.stage, manifest) if trainer.wants_teacher(planned.stage) else None,
        "ended_by": run.stopping.ended_by,
        "ended_because": run.stopping.over,
        "metrics": metrics,
        "data": run.feed.drawn.summary(run.progress.steps),
        "boundary": boundary(run.measured.before, run.measured.start, deviations),
        "domains": _domains(resolved, planned.name, metrics, "eval_"),
        "domains_start": _domains(resolved, planned.name, run.measured.start, "start_"),
        "trains_on": trained_on(resolved, planned.name),
        "ledger": run.notes.ledger.to_list(),
        "remembered": counters_of(trainer),
        "versions": {"hf_stages": __version__, "transformers": transformers.__version__, "torch": torch.__version__},
        "size": _size(trainer),
    }


def boundary(before: Mapping[str, float], start: Mapping[str, float], deviations: Any) -> dict[str, Any]:
    """Compare evaluation at the parent's end and at the stage's start. ``shock`` is the rise of what both have."""
    old = _comparable(before, "eval_")
    new = _comparable(start, "start_")
    shock = {key: new[key] - old[key] for key in new if key in old}
    return {"before": old, "start": new, "shock": shock, "deviations": deviations}


def _parents(manifest: Manifest, parent: str | None) -> list[dict[str, Any]]:
    if parent is None:
        return []
    folder = manifest.folder_of(parent)
    return [{"name": parent, "folder": folder.name, "seal": checksum_file(folder / SEAL)}]


def _rates(run: StageRun) -> dict[str, Any]:
    rate, position = run.rate, run.rate.position(run.progress.steps)
    return {
        "schedule": {"root": run.planned.span_root, "position": position},
        "lr_peak": rate.span.highest(rate.start, position),
        "lr_end": rate.now,
        "lr_groups": group_rates(run.trainer, rate.span.peak, rate.now),
    }


def _teacher(stage: Stage, manifest: Manifest) -> Any:
    """Name the teacher as declared."""
    return to_dict(stage).get("teacher") or manifest.described.get("teacher")


def _size(trainer: Any) -> dict[str, Any] | None:
    size = stored_size_or_none(trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False))
    return None if size is None else size.to_dict(trainer.blueprint.weights)


def _domains(
    resolved: ResolvedRecipe, stage: str, metrics: Mapping[str, Any], prefix: str
) -> dict[str, dict[str, float]]:
    """Give each domain that was measured: its loss over all items, bits per byte and task metrics."""
    names, plain = domains_of(resolved, stage), plain_name(resolved[stage])
    bare = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
    found = by_domain(bare, [name for name in names if name != plain], plain)
    return {name: found[name] for name in names if name in found}


def _comparable(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {
        key.removeprefix(prefix): value
        for key, value in metrics.items()
        if key.startswith(prefix) and not key.endswith(_TIMED)
    }
