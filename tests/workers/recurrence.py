"""Scenarios for two ranks: a recurrent core draws the same depth on both; gradients and losses are one process's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from hf_stages import AtDepths, Stage, StagedTrainer
from hf_stages.core.curves import Linear
from hf_stages.layers import find_recurrence
from hf_stages.losses import HaltingLoss, TaskLoss
from hf_stages.transforms import MakeRecurrent
from tests.support import tiny
from tests.workers.cases import CASES, Rows
from tests.workers.fsdp import FSDP
from tests.workers.ranks import same_on_ranks, scenario, staged


class Depths(TrainerCallback):
    """Notes the depth of each micro-batch."""

    def __init__(self) -> None:
        self.seen: list[int | None] = []

    def on_substep_end(self, args, state, control, model=None, **kwargs):
        self.seen.append(find_recurrence(model).last_depth)

    on_step_end = on_substep_end


def looped_run(out: Path, batch: int, state: str, **changes: Any) -> tuple[StagedTrainer, Depths]:
    """Two micro-batches an update, four updates, with a core that draws depths of a growing mean.

    Seven rows are evaluated, so one rank's last batch is filled up with rows that were read before.
    """
    norm = changes.pop("norm", "pre")
    gate = {"exit": "gate"} if changes.pop("gated", False) else {}
    then = changes.pop("then", [])
    core = MakeRecurrent(1, 2, 1, **gate, norm=norm, mean_depth=Linear(1, 5), backprop=2, state_init=state)
    depths, model = Depths(), tiny.llama(num_hidden_layers=4, pad_token_id=0)
    stages = [Stage("looped", "4 steps", transforms=[core], loss=HaltingLoss() if gate else None), *then]
    changes |= {"eval_dataset": AtDepths(Rows(CASES["causal"].rows()[:7]), (1, 4)), "per_device_eval_batch_size": 2}
    trainer = staged(out, stages, batch, 2, model=model, callbacks=[depths], max_grad_norm=1.0, **changes)
    trainer.train()
    return trainer, depths


@scenario
def recurrent(out: Path) -> list[int | None]:
    # Without a search for unused parameters, one that a depth leaves without a gradient would end the run.
    trainer, depths = looped_run(out / "zeros", 2, "zeros", ddp_find_unused_parameters=False)
    same_on_ranks(trainer.model, "zeros")
    trainer, _ = looped_run(out / "gated", 2, "zeros", gated=True, ddp_find_unused_parameters=False)
    same_on_ranks(trainer.model, "gated")
    # With checkpointing, Trainer itself asks for no such search.
    later = [Stage("later", "3 steps"), Stage("both", "2 steps", loss=TaskLoss() + HaltingLoss())]
    trainer, _ = looped_run(out / "later", 2, "zeros", gated=True, then=later, gradient_checkpointing=True)
    same_on_ranks(trainer.model, "later")
    trainer, random = looped_run(out / "normal", 2, "normal")
    same_on_ranks(trainer.model, "normal")
    found: list[Any] = [None, None]
    dist.all_gather_object(found, depths.seen)
    assert found[0] == found[1] == random.seen
    assert len(set(depths.seen)) > 2
    return depths.seen


@scenario
def sharded_recurrent(out: Path) -> list[int | None]:
    """FSDP2: a block's shards are gathered in each cycle. Compared with a single process by the test."""
    trainer, depths = looped_run(out / "zeros", 2, "zeros", norm="sandwich", **FSDP)
    assert trainer.is_fsdp_enabled
    return depths.seen
