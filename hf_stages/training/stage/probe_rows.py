"""The first rows of a dataset as a batch on the model's device, for monitors that look at the same rows each time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch

from hf_stages.core.randomness import preserve_random_state, seed_data
from hf_stages.data.drawing.blend import Blend
from hf_stages.data.evaluation_sets import plain_set
from hf_stages.data.source_column import SourceCollator

_SEED = 0


def probe_batch(trainer: Any, dataset: Any, count: int) -> Mapping[str, Any]:
    """Collate the first ``count`` rows of a dataset as an evaluation does. No generator is moved.

    Args:
        trainer: Whose collator and model's columns count.
        dataset: The rows; a batch of tensors as it is; None: the evaluation set, or what is trained on.
        count: How many rows.
    """
    if isinstance(dataset, Mapping) and any(torch.is_tensor(value) for value in dataset.values()):
        return {key: value.to(trainer.args.device) for key, value in dataset.items() if torch.is_tensor(value)}
    rows = _first_rows(plain_set(_own_dataset(trainer) if dataset is None else dataset), count)
    if not rows:
        raise ValueError("the probe has no rows; give probe=, a dataset or a batch of tensors")
    collator = trainer.data_collator
    if isinstance(collator, SourceCollator):
        collator = collator.inner
    with preserve_random_state():
        seed_data(_SEED)  # collators that mask at random mask alike on every rank and in every run
        batch = trainer._get_collator_with_removed_columns(collator)(rows)
    return trainer._prepare_inputs(batch)


def _own_dataset(trainer: Any) -> Any:
    """Return what is evaluated, the first of several sets; else what is trained on, a mixture's first source."""
    sets = trainer.eval_dataset
    found = next(iter(sets.values()), None) if isinstance(sets, dict) else sets
    found = trainer.train_dataset if found is None else found
    return found.leaves[0].dataset if isinstance(found, Blend) else found


def _first_rows(dataset: Any, count: int) -> list[Any]:
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return [dataset[i] for i in range(min(count, len(dataset)))]
    if isinstance(dataset, torch.utils.data.IterableDataset) or hasattr(dataset, "take"):
        with preserve_random_state():
            seed_data(_SEED)
            return list(islice(iter(dataset), count))
    raise ValueError(f"the probe cannot take rows of a {type(dataset).__name__}; give probe=, a dataset")
