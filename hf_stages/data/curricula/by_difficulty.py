"""Sorts one source from easy to hard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_stages.core.fingerprint import fingerprint
from hf_stages.core.part import resolve_part
from hf_stages.data.curricula.base import Curriculum, Make, check_source, single_source
from hf_stages.data.drawing.nodes import Node
from hf_stages.data.drawing.scores import cached_order, columns_of, score_identity, score_rows, sort_rows


@dataclass(frozen=True)
class ByDifficulty(Curriculum):
    """Draws the rows of one source in the order of a number, lowest first. Every pass begins with the easy rows again.

    The order is computed once, at the first step, and stored on disk in four bytes per row.

    >>> ByDifficulty("code", by="length", window=100).by
    'length'
    """

    source: Any
    """A name, a dataset or a curriculum."""
    by: str | Callable[[list[Any]], Any] = "length"
    """A column of numbers, ``"length"`` (tokens), or a function that takes a list of rows and returns a number for
    each, such as ``ModelLoss``."""
    descending: bool = False
    """Draw the hardest rows first."""
    window: int = 1
    """Rows are shuffled within groups of this many neighbours."""
    again: bool = True
    """Whether later passes are sorted, too. False: passes after the first are shuffled."""
    cache: str | None = None
    """The folder that stores the order; None is the run's own folder. A stored order is used again for the same data
    and ``by``."""

    def __post_init__(self) -> None:
        check_source(self.source, "source")
        if not (isinstance(self.by, str) and self.by) and not callable(self.by):
            raise ValueError(f"by: expected a column, 'length' or a function of a list of rows, got {self.by!r}")
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"window: expected a whole number of at least 1, got {self.window!r}")

    def resolve(self, base: str | Path) -> ByDifficulty:
        return replace(super().resolve(base), by=resolve_part(self.by, base))

    def node(self, make: Make, name: str | None, where: str) -> Node:
        where = f"{where}: ByDifficulty"
        leaf = single_source(make(self.source, name, where), "ByDifficulty", where)
        if isinstance(self.by, str):
            wanted = "input_ids" if self.by == "length" else self.by
            if wanted not in (known := columns_of(leaf.dataset)):
                raise ValueError(f"{where}: by: {leaf.name!r} has no column {wanted!r}; there are {', '.join(known)}")

        def order() -> Any:
            about = (
                fingerprint(leaf.dataset),
                leaf.n,
                score_identity(self.by, shared=self.cache is not None),
                self.descending,
            )
            folder = make.folder() if self.cache is None else Path(self.cache)
            return cached_order(
                folder, about, lambda: sort_rows(score_rows(leaf.dataset, self.by, where), descending=self.descending)
            )

        leaf.order, leaf.window, leaf.sort_every_pass = order, self.window, self.again
        return leaf
