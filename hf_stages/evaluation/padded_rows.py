"""Find the rows that a loader repeats: with several ranks it fills the last batches with rows that were read before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hf_stages.data.collators.base import find_pair_collator
from hf_stages.data.stage_collator import find_packed
from hf_stages.models.real_tokens import rows_of


def count_unread_rows(trainer: Any, batch: Mapping[str, Any]) -> int | None:
    """Count this rank's rows, from the first on, that were not read before; None where no rank's batch was filled up.

    Packed rows do not tell which example they are from. There all rows count, as in Trainer.
    """
    state, args = trainer.accelerator.gradient_state, trainer.args
    if args.world_size < 2 or not state.in_dataloader or not state.end_of_dataloader or state.remainder <= 0:
        return None
    if find_packed(trainer.data_collator) is not None:
        return None
    each = 1 if find_pair_collator(trainer.data_collator) is None else 2
    if rows_of(batch) != each * args.eval_batch_size:
        return None
    return each * min(max(state.remainder - args.process_index * args.eval_batch_size, 0), args.eval_batch_size)


def first_rows(batch: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Take the first rows of a batch, one at least, so that all ranks run the model."""
    total, count = rows_of(batch), max(count, 1)
    return {
        key: value[:count] if torch.is_tensor(value) and value.dim() and len(value) == total else value
        for key, value in batch.items()
    }
