"""What survives a cut of a stage: the state in each checkpoint, and how a stage goes on from it.

Everything that must survive is in ``state_of``; everything else is computed from it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState

from hf_stages.core.ranks import from_all_ranks
from hf_stages.core.stage import Stage
from hf_stages.training.trainer_counters import counters_of, restore_counters


@dataclass(frozen=True)
class CutStage:
    """A stage that was cut, as a checkpoint holds it."""

    state: Mapping[str, Any]
    checkpoint: str
    """The folder that ``state`` was read from."""


def state_of(stage: Any) -> dict[str, Any]:
    """Write down a StageRun. Collective: every rank has a part of the running loss."""
    trainer, progress, stopping, measured = stage.trainer, stage.progress, stage.stopping, stage.measured
    mine = {"tr_loss": trainer._tr_loss.item(), "objective": stage.objective.state_dict()}
    mine |= {"evaluated": measured.last.state_dict(), "monitors": stage.monitors.state_dict()}
    ranks = from_all_ranks(mine, trainer.args)
    return {
        "stage": stage.planned.name,
        "index": stage.planned.index,
        "global_batch": stage.planned.size.global_batch,
        "first_step": progress.first_step,
        "s0": stage.rate.start,
        "steps": progress.steps,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "over": stopping.over,
        "ended_by": stopping.ended_by,
        "history_start": measured.first_log,
        "before": measured.before,
        "start": measured.start,
        **stage.gates.state_dict(),
        "ledger": stage.notes.ledger.to_list(),
        "loop": {
            "tr_loss": [rank["tr_loss"] for rank in ranks],
            "total_loss": trainer._total_loss_scalar,
            "last_logged": trainer._globalstep_last_logged,
        },
        "objective": [rank["objective"] for rank in ranks],
        "evaluated": [rank["evaluated"] for rank in ranks],
        "monitors": [rank["monitors"] for rank in ranks],
        "drawn": stage.feed.drawn.state_dict(),
        "remembered": counters_of(trainer),
        "data": stage.feed.data.state_dict(progress.steps),
        "parts": {key: part.state_dict() for key, part in _parts_with_state(stage.planned.stage)},
    }


def restore(stage: Any, cut: CutStage) -> None:
    """Set a new StageRun to where it was cut. The losses' state is loaded once they are made."""
    state, progress, measured = cut.state, stage.progress, stage.measured
    for key, part in _parts_with_state(stage.planned.stage):
        part.load_state_dict(state["parts"][key])
    progress.steps, progress.tokens = state["steps"], state["tokens"]
    progress.seconds_before = progress.seconds = state["seconds"]
    stage.stopping.over, stage.stopping.ended_by = state["over"], state["ended_by"]
    measured.first_log, measured.before, measured.start = state["history_start"], state["before"], state["start"]
    measured.last.load_state_dict(state["evaluated"][stage.trainer.args.process_index])
    stage.gates.load_state_dict(state)
    stage.feed.drawn.load_state_dict(state.get("drawn", {}))
    restore_counters(stage.trainer, state.get("remembered", {}))
    stage.feed.data.load_state_dict(state.get("data"), progress.steps)
    stage.feed.bind_replays()


def restore_trainer_state(stage: Any, updates_per_epoch: int, carried: TrainerState) -> tuple[int, int]:
    """Set the new (or restored) TrainerState to where the run stands. Gives Trainer's (epoch, batches to skip).

    Args:
        stage: The StageRun in progress.
        updates_per_epoch: As Trainer counts them.
        carried: The state that the stage before ended with.
    """
    trainer, progress = stage.trainer, stage.progress
    state = trainer.state
    trainer.current_flos = 0  # of an update that was cut in this very process
    if stage.resumed is None:
        state.global_step = progress.first_step
        state.log_history = carried.log_history
        state.total_flos = carried.total_flos
        state.num_input_tokens_seen = carried.num_input_tokens_seen
        stage.measured.first_log = len(state.log_history)
    elif (best := stage.resumed.state.get("best")) is not None:
        state.best_model_checkpoint = str(Path(trainer.args.output_dir) / best)  # the run's folder may have been moved
    state.max_steps = progress.first_step + progress.run_steps
    if stage.stopping.over is not None:
        return sys.maxsize, 0  # nothing left to train, only to finish
    progress.epoch.done_before = progress.steps % updates_per_epoch
    return progress.steps // updates_per_epoch, 0


def restore_loop(stage: Any, cut: CutStage) -> None:
    """Set the running sums of Trainer's loop, where it begins."""
    trainer, loop = stage.trainer, cut.state["loop"]
    trainer._tr_loss += loop["tr_loss"][trainer.args.process_index]
    trainer._total_loss_scalar = loop["total_loss"]
    trainer._globalstep_last_logged = loop["last_logged"]
    trainer._initial_global_step = stage.progress.first_step
    if stage.stopping.over is not None:
        trainer._load_rng_state(cut.checkpoint)  # otherwise Trainer does, as the first epoch begins


def _parts_with_state(stage: Stage) -> list[tuple[str, Any]]:
    """Find the monitors and gates that have a memory."""
    parts = [(f"{kind}.{i}", p) for kind in ("monitors", "gates") for i, p in enumerate(getattr(stage, kind))]
    return [(key, part) for key, part in parts if hasattr(part, "state_dict")]
