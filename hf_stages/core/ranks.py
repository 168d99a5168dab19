"""A run's ranks: whether they belong together, and what all of them say."""

from __future__ import annotations

import os
from typing import Any

from transformers import TrainingArguments


def check_launch(args: TrainingArguments) -> None:
    """Refuse processes that would each train alone, all of them into the same folder."""
    started = os.environ.get("WORLD_SIZE", "")
    if not started.isdigit() or int(started) <= args.world_size:
        return
    how = "" if args.use_cpu else "On a CPU set use_cpu=True in TrainingArguments. "
    raise ValueError(
        f"WORLD_SIZE is {started}, so a launcher started {started} processes together, but this trainer is of {args.world_size}: each "
        f"process would train alone, into the same output_dir. {how}Start it with torchrun or accelerate launch (which set RANK and "
        "LOCAL_RANK too) where the ranks can find each other. To train alone on purpose, unset WORLD_SIZE"
    )


def all_ranks(value: Any, args: TrainingArguments) -> list[Any]:
    if args.world_size == 1:
        return [value]
    import torch

    gathered: list[Any] = [None] * args.world_size
    torch.distributed.all_gather_object(gathered, value)
    return gathered
