"""Scenarios for two ranks of DDP: bad updates, found on one rank alone, and what is done about them on both."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from hf_stages import Stage, StagedTrainer
from hf_stages.core.stops import RunInterrupted
from hf_stages.gates import CutRate, OnSpike, Rollback
from hf_stages.losses import TaskLoss
from hf_stages.schedules import Fresh
from tests.workers.ranks import ADAM, AskToStop, agree, scenario, watched, weights

GATE = OnSpike(skip=1, window=6, cooldown=8, then=[CutRate(0.5), Rollback(4), Rollback(9, skip_data=False)])
BAD = {10: 1, 11: 0, 12: 1, 13: 0, 14: 1, 15: 1}
"""After how many updates something is wrong, and on which rank alone."""


class LossOf(TaskLoss):
    """The model's own, which is not finite on one rank in some updates."""

    def __call__(self, student, teacher, batch, t):
        return super().__call__(student, teacher, batch, t) * factor(round(t * 24), (10, 14))


class SpoiltOnOneRank(StagedTrainer):
    """In the other updates the loss is finite, and only gradients of one rank are wrong, before they are shared."""

    def training_step(self, model, inputs, *args, **kwargs):
        own = factor(self.state.global_step, (11, 12, 13, 15), 1e5 if self.state.global_step == 12 else math.nan)
        handle = self.model.lm_head.weight.register_hook(lambda gradient: gradient * own)
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        finally:
            handle.remove()


def factor(updates: int, among: tuple[int, ...], bad: float = math.nan) -> float:
    return bad if updates in among and BAD[updates] == dist.get_rank() else 1.0


def run(out: Path, *stops: AskToStop, logging_steps: int = 5) -> Any:
    stage = Stage("a", "24 steps", loss=LossOf(), gates=[GATE], schedule=Fresh())
    changes = {**ADAM, "optim": "adamw_torch_fused", "kind": SpoiltOnOneRank, "logging_steps": logging_steps}
    trainer, _ = watched(out, [stage], 2, 2, callbacks=list(stops), save_steps=7, save_strategy="steps", **changes)
    for stop in stops:
        stop.trainer = trainer
    return trainer


def losses(trainer: Any) -> dict[int, float]:
    return {log["step"]: log["loss"] for log in trainer.state.log_history if "loss" in log}


@scenario
def ladder(out: Path) -> list[list[Any]]:
    """Both ranks skip, cut and go back together; cut and resumed, they end with the same bits."""
    trainer = run(out / "run")
    trainer.train()
    whole, logged = weights(trainer), agree(losses(trainer))
    each = run(out / "each", logging_steps=1)
    each.train()
    held = {end: [loss for step, loss in losses(each).items() if (end - 1) // 5 == (step - 1) // 5] for end in logged}
    assert [len(found) for found in held.values()] == [5, 5, 3, 5, 4]  # all but what was NaN on one of the ranks
    assert logged == pytest.approx({end: sum(found) / len(found) for end, found in held.items()}, rel=1e-5)
    for cut, moment in enumerate([AskToStop(1, 12, "step"), AskToStop(0, 14, "substep")]):
        with pytest.raises(RunInterrupted):
            run(out / "cut", moment).train(resume_from_checkpoint=cut > 0)
        dist.barrier()
    resumed = run(out / "cut")
    resumed.train(resume_from_checkpoint=True)
    assert all(whole[name].equal(weight) for name, weight in weights(resumed).items())
    assert losses(resumed) == logged
    dist.barrier()
    ledgers = [json.loads((out / name / "01-a" / "stage.json").read_text())["ledger"] for name in ("run", "cut")]
    assert ledgers[0] == ledgers[1]
    return [[entry["step"], entry["kind"]] for entry in ledgers[0]]
