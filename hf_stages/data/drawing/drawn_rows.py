"""Gives Trainer's dataloader the rows of a blend, by position in the stage or as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from torch.utils.data import Dataset, IterableDataset, Sampler

from hf_stages.core.randomness import seed_data, seed_of
from hf_stages.data.drawing.blend import Blend
from hf_stages.data.drawing.nodes import Leaf, Walk
from hf_stages.data.drawing.scores import count_tokens

_STRETCH = 1024


class DrawnRows(Dataset):
    """Rows by position in the stage.

    Every process finds the row by itself, so workers and ranks need not exchange anything.

    Random transforms and collators draw from a seed of (stage, the batch's positions). ``column`` of a row names its
    source.
    """

    def __init__(self, blend: Blend, seed: int, length: int, column: str) -> None:
        self.blend, self.seed, self.length, self.column = blend, seed, length, column
        self._known: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Any:
        return self.__getitems__([position])[0]

    def __getitems__(self, drawn: Sequence[Any]) -> list[Any]:
        if isinstance(drawn[0], tuple):  # the sampler has drawn them one by one
            positions, leaves, rows = (np.array(column, dtype=np.int64) for column in zip(*drawn, strict=True))
        else:
            positions = np.asarray(drawn, dtype=np.int64)
            leaves, rows = self._at(positions)
        seed_data(seed_of(self.seed, xxhash.xxh3_64_intdigest(positions.tobytes())))
        found: list[Any] = [None] * len(positions)
        for number in np.unique(leaves).tolist():
            leaf, where = self.blend.leaves[number], np.flatnonzero(leaves == number).tolist()
            for place, row in zip(where, _fetch(leaf, rows[where].tolist()), strict=True):
                found[place] = [
                    _add_source(one, self.column, leaf.name) for one in (row if isinstance(row, list) else [row])
                ]
        return [row for rows in found for row in rows]

    def _at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ask the blend, for a stretch of positions at a time: a call costs as much for one position as for
        hundreds."""
        found = np.zeros((2, len(positions)), dtype=np.int64)
        stretches = positions // _STRETCH
        for stretch in np.unique(stretches).tolist():
            if stretch not in self._known:
                for old in list(self._known)[:-1]:
                    del self._known[old]
                self._known[stretch] = np.stack(self.blend.at(np.arange(stretch * _STRETCH, (stretch + 1) * _STRETCH)))
            where = stretches == stretch
            found[:, where] = self._known[stretch][:, positions[where] - stretch * _STRETCH]
        return found[0], found[1]


class Positions(Sampler[int]):
    """Samples the positions of an epoch, from any position on.

    An epoch is a whole number of updates, so the next one goes on.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.epoch = self.start = 0
        self.first, self.end = 0, length

    def at(self, epoch: int, start: int = 0) -> None:
        self.epoch, self.start = epoch, start
        self.first, self.end = epoch * self.length + start, (epoch + 1) * self.length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        yield from range(self.first, self.end)


class PositionsWithRows(Positions):
    """Samples positions together with the rows drawn there.

    The main process knows of a gate's replay at once; a worker may still hold the blend from before it.
    """

    def __init__(self, length: int, blend: Blend) -> None:
        super().__init__(length)
        self.blend = blend

    def __iter__(self) -> Iterator[Any]:
        for start in range(self.first, self.end, _STRETCH):
            positions = np.arange(start, min(start + _STRETCH, self.end))
            leaves, rows = self.blend.at(positions)
            yield from zip(positions.tolist(), leaves.tolist(), rows.tolist(), strict=True)


class OneByOnePositions(Positions):
    """Samples positions with rows that depend on all draws before.

    The few numbers of that state are stored for each update.
    """

    def __init__(self, length: int, blend: Blend, every: int) -> None:
        super().__init__(length)
        self.blend, self.every = blend, every
        self.states: dict[int, dict[str, Any]] = {0: Walk(lambda leaf, row: 0).state_dict()}
        """The states at the last updates, by position. A loader that fetches ahead has begun some of them."""

    def __iter__(self) -> Iterator[Any]:
        walk = self.blend.walk()
        walk.load_state_dict(self.states[self.first])
        drawn = self.blend.draw_range(walk, self.first, self.end)
        for position, (leaf, row) in enumerate(drawn, start=self.first):
            yield position, leaf, row
            if (position + 1) % self.every == 0:
                self.states[position + 1] = walk.state_dict()
                while len(self.states) > _STRETCH:
                    del self.states[min(self.states)]


class DrawnStream(IterableDataset):
    """Reads a blend with a stream in it, in order. A source that ends is read again.

    Examples before ``start`` are read again and dropped, before they are collated.
    """

    def __init__(self, blend: Blend, seed: int, column: str) -> None:
        self.blend, self.seed, self.column = blend, seed, column
        self.start = 0

    def __iter__(self) -> Iterator[Any]:
        readers = [_Reader(leaf, self.seed, self.blend) for leaf in self.blend.leaves]
        for position, leaf, row in self._drawn(readers):
            if position >= self.start:
                yield _add_source(row, self.column, self.blend.leaves[leaf].name)

    def _drawn(self, readers: list[_Reader]) -> Iterator[tuple[int, int, Any]]:
        if self.blend.one_by_one:
            found: list[Any] = [None]

            def read(leaf: Leaf, row: int) -> int:
                found[0] = readers[leaf.number].read(row, position)
                return count_tokens(found[0])

            walk, position = self.blend.walk(read), 0
            while True:
                for leaf, _ in self.blend.draw_range(walk, position, position + 1):
                    yield position, leaf, found[0]
                position += 1
        position = self.start  # every source knows how much was drawn from it before
        while True:
            leaves, rows = self.blend.at(np.arange(position, position + _STRETCH))
            for leaf, row in zip(leaves.tolist(), rows.tolist(), strict=True):
                yield position, leaf, readers[leaf].read(row, position)
                position += 1


class _Reader:
    """Reads one source of a stream by the number of the draw, which only rises."""

    def __init__(self, leaf: Leaf, seed: int, blend: Blend) -> None:
        self.leaf, self.where, self.draws = leaf, blend.where, blend.draws
        self.seed = seed_of(seed, leaf.name, "stream")
        self.rows: Iterator[Any] | None = None
        self.taken, self.passes = 0, 0

    def read(self, number: int, position: int) -> Any:
        """Return a map-style source's row, or the stream's example of that number.

        A loader may read beyond the stage's end; there it is no error if a source ends.
        """
        if self.leaf.n is not None:
            seed_data(
                seed_of(self.seed, position)
            )  # by position, not by row: a later pass transforms the row differently
            return self.leaf.dataset[number]
        while True:
            row = self._next(position >= self.draws)
            self.taken += 1
            if self.taken > number:
                return row

    def _next(self, ahead: bool) -> Any:
        for fresh in (False, True):
            if self.rows is None:
                self._open()
            assert self.rows is not None
            seed_data(seed_of(self.seed, self.taken))
            row = next(self.rows, self)
            if row is not self:
                return row
            if fresh:
                break
            if self.leaf.may_stop and not ahead:
                raise ValueError(
                    f"{self.where}: {self.leaf.name!r} ran dry after {self.taken:,} examples; shorten the stage, or "
                    "let it be read again: on_dry='repeat'"
                )
            self.rows, self.passes = None, self.passes + 1
        raise ValueError(f"{self.where}: the stream {self.leaf.name!r} is empty: a pass over it gave no example")

    def _open(self) -> None:
        if hasattr(self.leaf.dataset, "set_epoch"):
            self.leaf.dataset.set_epoch(self.passes)
        seed_data(seed_of(self.seed, self.passes, "pass"))
        self.rows = iter(self.leaf.dataset)


def _fetch(leaf: Leaf, rows: list[int]) -> list[Any]:
    fetch = getattr(leaf.dataset_for_model, "__getitems__", None)
    return list(fetch(rows)) if fetch is not None else [leaf.dataset_for_model[row] for row in rows]


def _add_source(row: Any, column: str, name: str) -> Any:
    return {**row, column: name} if isinstance(row, Mapping) else row
