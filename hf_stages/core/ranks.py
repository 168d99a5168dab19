"""A run's ranks: whether they belong together, and how they exchange plain values."""

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
        f"WORLD_SIZE is {started}, so a launcher started {started} processes together, but this trainer is of "
        f"{args.world_size}: each process would train alone, into the same output_dir. {how}Start it with torchrun or "
        "accelerate launch (which set RANK and LOCAL_RANK too) where the ranks can find each other. To train alone on "
        "purpose, unset WORLD_SIZE"
    )


def from_all_ranks(value: Any, args: TrainingArguments) -> list[Any]:
    """Give every rank the values of all ranks, in the order of the ranks. Collective."""
    if args.world_size == 1:
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])


def from_main_rank(value: Any, args: TrainingArguments) -> Any:
    """Give every rank the value of rank 0. Collective."""
    if args.world_size == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]
