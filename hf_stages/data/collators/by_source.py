"""Collates the rows of each source with that source's own collator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_stages.core.placed_errors import place_errors
from hf_stages.data.collators._join_batches import Part, join_batches
from hf_stages.data.collators.base import (
    BaseCollator,
    build_collator,
    columns_read,
    nested_collators,
    pad_batch,
    pad_id,
    read_documents,
)
from hf_stages.data.collators.lengths import Lengths
from hf_stages.data.collators.packed import Packed
from hf_stages.data.collators.preferences import Preferences

_SOURCE = "source"
"""The column in which rows of a curriculum name their source."""


@dataclass(frozen=True)
class BySource(BaseCollator):
    """Collates rows by their source: ``BySource({"language": Lengths(512), "tools": ToolCallsOnly()})``.

    A batch may hold rows of several sources, padded to the widest. Rows of a ``Mixture`` or any other curriculum name
    their source; other rows name it in a column ``source``. A stage that trains on one source by its name, and an
    evaluation set with a source's name, use that source's collator. Each collator must make one padded row of each row
    it gets. A collator that packs or splits goes around: ``Packed(2048, BySource({...}))``.

    >>> rows = [{"source": "a", "input_ids": [5, 6, 7]}, {"source": "b", "input_ids": [8, 9]}]
    >>> BySource({"a": Lengths(2), "b": None})(rows)["input_ids"].tolist()
    [[5, 6], [8, 9]]
    """

    collators: Mapping[str, Any]
    """A collator for each source. None: its rows hold ``input_ids`` (and ``labels``), and are padded."""
    collator: Any = None
    """The collator for rows of other sources, and rows without a source."""
    tokenizer: Any = None
    """Gives the padding token and side. None: the trainer's."""

    def __post_init__(self) -> None:
        if not isinstance(self.collators, Mapping) or not self.collators:
            raise ValueError(
                'BySource: collators: expected collators by source, as {"tools": ToolCallsOnly()}, got '
                f"{self.collators!r}"
            )
        for name, collator in (*self.collators.items(), (None, self.collator)):
            here = f"BySource: {name!r}" if name is not None else "BySource: collator"
            if collator is not None and not callable(collator) and not hasattr(collator, "build"):
                raise ValueError(f"{here}: expected a collator, got {collator!r}")
            _check_one_row_each(here, collator)

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({_SOURCE}).union(*(columns_read(c) for c in self.collators.values() if c is not None))

    def build(self, tokenizer: Any = None, model: Any = None) -> BySource:
        ready = super().build(tokenizer, model)
        own = {}
        for name, collator in self.collators.items():
            with place_errors(f"BySource: {name!r}"):
                own[name] = build_collator(collator, tokenizer, model)
        return replace(ready, collators=own)

    def at(self, t: float | None) -> BySource:
        own = {name: c.at(t) if isinstance(c, BaseCollator) else c for name, c in self.collators.items()}
        return replace(super().at(t), collators=own)

    def for_source(self, name: str) -> BySource:
        """Return a copy that uses the source's own collator for rows without a source."""
        return replace(self, collator=self.collators[name]) if name in self.collators else super().for_source(name)

    def __call__(self, rows: Sequence[Any]) -> Any:
        places: dict[str | None, list[int]] = {name: [] for name in (*self.collators, None)}
        for place, row in enumerate(rows):
            name = row.get(_SOURCE) if isinstance(row, Mapping) else None
            places[name if name in self.collators else None].append(place)
        parts = []
        for name, own in places.items():  # in the declared order: collators that draw at random draw in this one
            if own:
                collator = self.collator if name is None else self.collators[name]
                parts.append(
                    Part(name or "other rows", own, self._collated(collator, [_without_source(rows[i]) for i in own]))
                )
        if len(parts) == 1:
            return parts[0].batch
        return join_batches(
            "BySource",
            parts,
            pad_id(self.tokenizer),
            left=getattr(self.tokenizer, "padding_side", "right") == "left",
        )

    def _collated(self, collator: Any, rows: Sequence[Any]) -> Any:
        if collator is not None:
            return collator(rows)
        found, apart = read_documents("BySource", rows, None)
        return {**pad_batch(found, self.tokenizer), **apart}


def _without_source(row: Any) -> Any:
    return {key: value for key, value in row.items() if key != _SOURCE} if isinstance(row, Mapping) else row


def _check_one_row_each(here: str, collator: Any) -> None:
    """Refuse a collator that makes more or fewer rows than it gets, at any depth."""
    for one in nested_collators(collator):
        if isinstance(one, Packed) or (isinstance(one, Lengths) and one.longer == "split"):
            what = type(one).__name__ if isinstance(one, Packed) else "Lengths(longer='split')"
            raise ValueError(
                f"{here}: {what} does not make one row of each; put it around: {type(one).__name__}(..., "
                "BySource({...}))"
            )
        if isinstance(one, Preferences):
            raise ValueError(f"{here}: Preferences makes two rows of each, a pair; give pairs a stage of their own")
