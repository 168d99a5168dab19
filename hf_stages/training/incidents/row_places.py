"""Where the rows of an update come from, computed from the order in which the stage reads its data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_stages.data.drawing.blend import Blend
from hf_stages.data.drawing.drawn_rows import OneByOnePositions
from hf_stages.data.drawing.nodes import Leaf
from hf_stages.data.drawing.order import StageSampler
from hf_stages.training.stage.stage_data import StageData


@dataclass(frozen=True)
class RowPlace:
    """One row of the data, as the stage drew it."""

    position: int
    """Its number in the order in which the stage reads, over all ranks, counted from the stage's first row."""
    source: str | None = None
    """The name of its source; None where the stage reads one dataset without a name, or a stream that hides it."""
    index: int | None = None
    """Its number in the source's dataset. In a stream: which example of that source it is; None where nobody knows."""


def places_of_micro_batch(data: StageData, epoch: int, done: int, micro_batch: int, rank: int) -> list[RowPlace]:
    """List the rows of one micro-batch in their order.

    All ranks take turns: a micro-batch of each, then the next of each.

    Args:
        data: The stage's.
        epoch: The epoch that the update is in.
        done: Updates of the epoch before it.
        micro_batch: The number of the micro-batch in the update, from 0.
        rank: Whose micro-batch.
    """
    size = data.size
    first = done * size.global_batch + (micro_batch * size.world + rank) * size.batch
    return list(_places(data, epoch, first, first + size.batch))


def _places(data: StageData, epoch: int, first: int, last: int) -> Iterator[RowPlace]:
    """Find the rows at positions of an epoch."""
    if (blend := data.blend) is not None:
        begin = 0 if data.stream is not None else epoch * data.epoch_length
        yield from _drawn(data, blend, begin + first, begin + last)
    elif isinstance(sampler := data.sampler, StageSampler):
        last = min(last, len(sampler))
        rows = sampler.order(epoch, np.arange(first, last) % sampler.n)
        for position, row in zip(range(first, last), rows, strict=True):
            yield RowPlace(epoch * len(sampler) + position, index=int(row))
    else:
        yield from (RowPlace(position, index=position) for position in range(first, last))


def _drawn(data: StageData, blend: Blend, first: int, last: int) -> Iterator[RowPlace]:
    if blend.one_by_one and data.stream is not None:  # each row depends on the lengths of all rows before
        yield from (RowPlace(position) for position in range(first, last))
        return
    if isinstance(data.sampler, OneByOnePositions):
        start = max((known for known in data.sampler.states if known <= first), default=None)
        if start is None:  # so long ago that its state was dropped
            yield from (RowPlace(position) for position in range(first, last))
            return
        walk = blend.walk()
        walk.load_state_dict(data.sampler.states[start])
        drawn = list(blend.draw_range(walk, start, last))[first - start :]
    else:
        leaves, rows = blend.at(np.arange(first, last))
        drawn = list(zip(leaves.tolist(), rows.tolist(), strict=True))
    for position, (number, row) in zip(range(first, last), drawn, strict=True):
        leaf = blend.leaves[number]
        for one in rows_in_place(leaf, row):
            yield RowPlace(position, leaf.name, one)


def rows_in_place(leaf: Leaf, row: int) -> list[int]:
    """List the rows of the dataset that one place holds: several where the source puts short rows together."""
    rows_of: Any = getattr(leaf.dataset, "rows_of_group", None)
    return [int(one) for one in rows_of(row)] if rows_of is not None else [row]


def row_of(data: StageData, place: RowPlace) -> Any:
    """Read a row from its dataset, with all its columns; None where it has no number there."""
    if place.index is None or data.stream is not None:
        return None
    if data.blend is None:
        return data.dataset[place.index]
    leaf = next(leaf for leaf in data.blend.leaves if leaf.name == place.source)
    if leaf.n is None:
        return None
    dataset: Any = leaf.dataset
    return (dataset.dataset if leaf.takes_several else dataset)[place.index]
