"""Checks of ways back that need the plan: how long a stage is, and how its data is cut into updates."""

from __future__ import annotations

from typing import Any

from hf_stages.data.drawing.blend import Blend
from hf_stages.planning.plan import Plan, PlannedStage


def check_rollbacks(plan: Plan) -> None:
    """Refuse a detector's way back that is as long as its stage, and data that cannot come again."""
    for planned in plan.stages:
        for index, gate in enumerate(planned.stage.gates):
            where = f"stage {planned.name!r}: gates[{index}] {type(gate).__name__}: then"
            for action in getattr(gate, "then", ()):
                decision = action.decide()
                if decision.action != "rollback" or decision.steps_back is None:
                    continue
                if decision.steps_back >= planned.steps:
                    raise ValueError(
                        f"{where}: {type(action).__name__}: steps: expected fewer than the stage's {planned.steps} "
                        f"updates, got {decision.steps_back}: there would be no state that old to go back to"
                    )
                if not decision.skip_data and (reason := _why_not_again(planned)) is not None:
                    raise ValueError(
                        f"{where}: {type(action).__name__}: skip_data=False: {reason}; use skip_data=True, which goes "
                        "on behind the rows that were drawn"
                    )


def _why_not_again(planned: PlannedStage) -> str | None:
    """Say why the same rows cannot be drawn again."""
    size, blend = planned.size, planned.blend
    if size.examples is None or (isinstance(blend, Blend) and blend.streams):
        return "a stream cannot be read backwards"
    if isinstance(blend, Blend) and blend.one_by_one:
        return "each row of this curriculum depends on all rows before it"
    if any(gate.replays for gate in planned.stage.gates):
        return "a gate of the stage replays data from some position on"
    batches: Any = size.batches_per_epoch
    if batches % size.accumulation:
        return (
            f"an epoch of {batches} micro-batches is no whole number of updates of {size.accumulation}, so rows that "
            "come again would be cut into other updates"
        )
    return None
