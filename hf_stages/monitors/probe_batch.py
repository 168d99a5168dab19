"""The first rows of a dataset as a batch on the model's device: for monitors that look at the same rows each time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch

from hf_stages.core.randomness import preserve_random_state, seed_data

_SEED = 0


def probe_batch(trainer: Any, collator: Any, dataset: Any, count: int) -> Mapping[str, Any]:
    """Collate the first ``count`` rows of a dataset. No generator is moved.

    Args:
        trainer: Whose model's columns are kept.
        collator: Makes the batch, as in an evaluation.
        dataset: The rows, or a batch of tensors, which is taken as it is.
        count: How many rows.
    """
    if isinstance(dataset, Mapping) and any(torch.is_tensor(value) for value in dataset.values()):
        return {key: value.to(trainer.args.device) for key, value in dataset.items() if torch.is_tensor(value)}
    with preserve_random_state():
        seed_data(_SEED)  # collators that mask at random mask alike on every rank and in every run
        rows = _first_rows(dataset, count)
        if not rows:
            raise ValueError("the probe has no rows; give probe=, a dataset or a batch of tensors")
        batch = trainer._get_collator_with_removed_columns(collator)(rows)
    return trainer._prepare_inputs(batch)


def _first_rows(dataset: Any, count: int) -> list[Any]:
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return [dataset[i] for i in range(min(count, len(dataset)))]
    if hasattr(dataset, "take"):
        return list(dataset.take(count))
    if isinstance(dataset, torch.utils.data.IterableDataset):
        return list(islice(iter(dataset), count))
    raise ValueError(f"the probe cannot take rows of a {type(dataset).__name__}; give probe=, a dataset")
