"""Sorts one source from short to long, and can put as many rows into one place of a batch as fit a number of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_stages.data.curricula.base import Curriculum, Make, check_source, single_source
from hf_stages.data.drawing.nodes import Leaf, Node
from hf_stages.data.drawing.scores import row_lengths, sort_rows


@dataclass(frozen=True)
class ByLength(Curriculum):
    """Draws rows by their number of tokens, shortest first.

    With ``tokens``, each place of a batch holds as many rows as fit that many tokens when padded to the longest. 512
    tokens are 16 rows of 32 early in a pass and one row of 512 late. So a batch keeps about the same number of tokens
    while its number of rows goes down.

    >>> ByLength("text", tokens=512).tokens
    512
    """

    source: Any
    """A name, a dataset or a curriculum."""
    tokens: int | None = None
    """Tokens of one place; a batch has ``per_device_train_batch_size`` places. None: one row per place."""
    descending: bool = False
    """Draw the longest rows first."""
    window: int = 1
    """Places are shuffled within groups of this many neighbours. A window as large as the source gives batches of
    similar length in any order."""

    def __post_init__(self) -> None:
        check_source(self.source, "source")
        for key in ("tokens", "window"):
            value = getattr(self, key)
            if (key == "window" or value is not None) and (
                isinstance(value, bool) or not isinstance(value, int) or value < 1
            ):
                raise ValueError(f"{key}: expected a whole number of at least 1, got {value!r}")

    def node(self, make: Make, name: str | None, where: str) -> Node:
        where = f"{where}: ByLength"
        leaf = single_source(make(self.source, name, where), "ByLength", where)
        rows = row_lengths(leaf.dataset, where)
        if self.tokens is None:
            leaf.order, leaf.window = lambda: sort_rows(rows, descending=self.descending), self.window
            return leaf
        if (longest := int(rows.max())) > self.tokens:
            raise ValueError(
                f"{where}: tokens: a row of {leaf.name!r} has {longest} tokens and does not fit {self.tokens}; cut the "
                f"rows, or let tokens be at least {longest}"
            )
        groups = _Groups.fill(leaf.dataset, rows, self.tokens)
        places = np.arange(len(groups), dtype=np.uint32)
        own = Leaf(leaf.name, groups, len(groups), order=lambda: places[::-1] if self.descending else places)
        own.window = self.window
        return own


class _Groups:
    """A dataset whose items are lists of rows of similar length."""

    def __init__(self, dataset: Any, order: np.ndarray, starts: np.ndarray, tokens: np.ndarray) -> None:
        self.dataset, self.order, self.starts, self.tokens = dataset, order, starts, tokens

    @classmethod
    def fill(cls, dataset: Any, rows: np.ndarray, tokens: int) -> _Groups:
        order = sort_rows(rows, descending=False)
        ascending = rows[order].astype(np.int64)
        starts, at, n = [0], 0, len(ascending)
        while at < n:
            count = tokens // max(int(ascending[at]), 1)
            while True:  # the last of so many rows is the longest: how many of its length fit?
                fit = max(tokens // max(int(ascending[min(at + count, n) - 1]), 1), 1)
                if fit >= count:
                    break
                count = fit
            at = min(at + count, n)
            starts.append(at)
        edges = np.array(starts, dtype=np.int64)
        held = np.add.reduceat(ascending, edges[:-1])
        return cls(dataset, order, edges, held)

    def with_dataset(self, dataset: Any) -> _Groups:
        """Return the same groups over a dataset whose columns were changed."""
        return _Groups(dataset, self.order, self.starts, self.tokens)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows_of_group(self, group: int) -> list[int]:
        """Return the numbers of a group's rows in the dataset."""
        return self.order[self.starts[group] : self.starts[group + 1]].tolist()

    def __getitem__(self, group: int) -> list[Any]:
        chosen = self.rows_of_group(group)
        fetch = getattr(self.dataset, "__getitems__", None)
        return list(fetch(chosen)) if fetch is not None else [self.dataset[row] for row in chosen]
