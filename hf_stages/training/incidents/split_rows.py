"""Takes a collated micro-batch apart into its rows, each a batch of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from hf_stages.core.batch import DRAWN
from hf_stages.models.real_tokens import real_tokens, rows_of

Place = TypeVar("Place")


@dataclass(frozen=True)
class SplitRow(Generic[Place]):
    """One row of a micro-batch, or several that belong together."""

    first: int
    """The number of its first row in the micro-batch."""
    columns: Mapping[str, Any]
    """The row alone, as a batch."""
    places: tuple[Place, ...]
    """The examples that it is made of. A packed row is made of several, and which ones is not known: then all of the
    micro-batch are listed."""


def split_rows(batch: Mapping[str, Any], places: Sequence[Place], *, in_pairs: bool = False) -> list[SplitRow[Place]]:
    """Split a micro-batch into rows, and find the examples of each.

    >>> ids = torch.tensor([[1, 2], [3, 4]])
    >>> [(row.first, row.columns["input_ids"].tolist(), row.places) for row in split_rows({"input_ids": ids}, "ab")]
    [(0, [[1, 2]], ('a',)), (1, [[3, 4]], ('b',))]

    Args:
        batch: As the collator made it.
        places: The examples that it was made of, in their order.
        in_pairs: Whether each example is two rows, which a loss compares.
    """
    columns = {key: value for key, value in batch.items() if key != DRAWN}
    total, each = rows_of(columns), 2 if in_pairs else 1
    if total % each or not all(_has_rows(value, total) for value in columns.values()):
        return [SplitRow(0, columns, tuple(places))]
    several = total // each
    rows = []
    for i in range(several):
        own = (places[i],) if several == len(places) else tuple(places)
        rows.append(SplitRow(i * each, _slice(columns, i * each, each, total), own))
    return rows


def count_tokens_of(columns: Mapping[str, Any]) -> int:
    """Count a row's tokens without padding; 0 where it has none."""
    real = real_tokens(columns)
    if real is not None:
        return int(real.sum())
    ids: Any = columns.get("input_ids")
    return ids.numel() if torch.is_tensor(ids) else 0


def _has_rows(value: Any, total: int) -> bool:
    """Whether a column has one entry for each row, or one for all."""
    if torch.is_tensor(value):
        return not value.dim() or len(value) == total
    return not isinstance(value, list | tuple) or len(value) == total


def _slice(columns: Mapping[str, Any], first: int, count: int, total: int) -> dict[str, Any]:
    one_by_one = {k for k, v in columns.items() if (torch.is_tensor(v) and v.dim()) or isinstance(v, list | tuple)}
    return {key: value[first : first + count] if key in one_by_one else value for key, value in columns.items()}
