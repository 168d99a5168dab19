"""Warnings about a plan that may run: rates that rise, stages without a warmup, batches of a few examples."""

from __future__ import annotations

from hf_stages.planning.plan import Plan, PlannedStage

LEAST_BATCH = 8
"""Below this many rows in an update, gradients of small models are mostly noise. A pair of answers is two rows."""


def cautions(plan: Plan) -> dict[str, list[str]]:
    """Return warnings by stage. They refuse nothing: the plan shows them, and a run's ledger has them as notices."""
    found = {planned.name: [*_rates(plan, planned), *_batch(planned)] for planned in plan.stages}
    return {name: lines for name, lines in found.items() if lines}


def _rates(plan: Plan, planned: PlannedStage) -> list[str]:
    if planned.parent is None or planned.span_root != planned.name:
        return []
    parent, span, found = plan[planned.parent], plan.spans[planned.name], []
    before, peak = plan.peak_lr(parent.name), plan.peak_lr(planned.name)
    # Other parameters than the parent's have rates of their own: an adapter's is ten times that of whole weights.
    same = not any(transform.structural for transform in planned.stage.transforms)
    if same and peak > before * (1 + 1e-9):
        found.append(
            f"its learning rate goes up to {peak:.3g}, above the {before:.3g} of {parent.name!r} before it: a later "
            "stage that learns faster forgets more; lower the peak, or watch the earlier data with the gate Forgetting"
        )
    schedule = planned.stage.schedule
    empty = schedule is None or schedule.optimizer == "reset"
    if span.warmup == 0 and planned.lr_in > 0.5 * peak and (empty or planned.lr_in > parent.lr_out * 1.01):
        why = "with an optimizer that starts empty" if empty else f"after the {parent.lr_out:.3g} of {parent.name!r}"
        found.append(
            f"no warmup: its first update is made at {planned.lr_in:.3g} {why}; say one: warmup_steps=0.05 in args, or "
            "Fresh(warmup='5 %') in the stage"
        )
    return found


def _batch(planned: PlannedStage) -> list[str]:
    size = planned.size.global_batch
    if size * planned.size.rows >= LEAST_BATCH or (planned.size.examples or size) < LEAST_BATCH:
        return []
    return [
        f"{size} example{'s' * (size != 1)} per update: below {LEAST_BATCH} the loss is noisy and rates tuned on "
        "larger batches are too high; raise gradient_accumulation_steps"
    ]
