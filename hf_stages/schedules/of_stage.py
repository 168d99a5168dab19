"""Which schedule a stage has: its own, or a fresh one where it declares none."""

from __future__ import annotations

from hf_stages.core.stage import Stage
from hf_stages.schedules.base import Schedule
from hf_stages.schedules.fresh import Fresh


def schedule_of(stage: Stage) -> Schedule:
    """The stage's schedule; ``Fresh()`` where none is declared.

    >>> schedule_of(Stage("code", "10 steps"))
    Fresh(peak=None, warmup=None, shape=None, optimizer='reset')
    """
    schedule = stage.schedule if stage.schedule is not None else Fresh()
    if not isinstance(schedule, Schedule):
        raise ValueError(
            f"stage {stage.name!r}: schedule: expected a schedule such as Fresh(peak=1e-4), or a subclass of "
            f"hf_stages.schedules.Schedule, got {schedule!r}"
        )
    return schedule
