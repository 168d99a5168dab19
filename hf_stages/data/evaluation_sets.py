"""Reads evaluation sets, around which depths may be declared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_stages.data.at_depths import AtDepths


def plain_set(dataset: Any) -> Any:
    """Return the dataset itself, which has rows, where depths are declared around it."""
    return dataset.dataset if isinstance(dataset, AtDepths) else dataset


def plain_sets(sets: Any) -> Any:
    """Return evaluation sets without their depths: one, several by name, or None."""
    if isinstance(sets, Mapping) and any(isinstance(one, AtDepths) for one in sets.values()):
        return {name: plain_set(one) for name, one in sets.items()}
    return plain_set(sets)


def depths_of(dataset: Any) -> tuple[int, ...]:
    """Return the depths that are declared for an evaluation set; none for a plain one."""
    return tuple(dataset.depths) if isinstance(dataset, AtDepths) else ()
