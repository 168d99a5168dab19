"""A scenario for two ranks: monitors log the same on both, and what one process logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from hf_stages import Stage
from hf_stages.monitors import AttentionEntropy, QuantizedWeights, RunHealth
from hf_stages.transforms import Ternarize
from tests.workers.ranks import scenario, staged

CLOCKS = ("tokens_per_second", "memory_gib", "data_wait")


def watched(out: Path, batch: int, accumulation: int = 1) -> list[dict[str, float]]:
    """What the monitors of four updates log, but for clocks."""
    monitors = [RunHealth(), QuantizedWeights(every=1), AttentionEntropy()]
    stages = [Stage("watched", "4 steps", transforms=[Ternarize("mlp")], monitors=monitors)]
    trainer = staged(out, stages, batch, accumulation, logging_steps=2, logging_strategy="steps")
    trainer.train()
    logs = [log for log in trainer.state.log_history if "raw_loss" in log]
    assert len(logs) == 2
    assert all(name in log for log in logs for name in CLOCKS)
    # Latent weights that differ in their last digits may change their level an update earlier or later.
    left_out = (*CLOCKS, "sign_flips", "zero_share", "saturated_layers")
    return [{name: value for name, value in log.items() if name not in left_out} for log in logs]


@scenario
def watched_runs(out: Path) -> dict[str, list[dict[str, float]]]:
    cuts = {"4": watched(out / "4", 4), "2x2": watched(out / "2x2", 2, 2)}
    both: list[Any] = [None, None]
    dist.all_gather_object(both, cuts)
    assert both[0] == both[1]
    return cuts
