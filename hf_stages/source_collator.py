"""Carries each row's source through a collator that knows nothing of it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_stages.data._collating import columns_read
from hf_stages.losses._on_source import SOURCE

DRAWN = "drawn"
"""In a batch: the source's number and the tokens of each row that it was made of; taken out again before the update."""


@dataclass(frozen=True)
class SourceCollator:
    """Takes the ``source`` column out, collates the rest, and adds the sources' numbers."""

    inner: Any
    sources: tuple[str, ...] = ()
    """Those that the stage's loss tells apart."""
    drawn: tuple[str, ...] = ()
    """Those that the stage's data is drawn from, which are counted."""

    def __call__(self, rows: Sequence[Any]) -> Any:
        if not all(isinstance(row, Mapping) and SOURCE in row for row in rows):
            return self.inner(rows)
        names = [row[SOURCE] for row in rows]
        numbers = [self._number(name) for name in names] if self.sources else []
        bare = [{key: value for key, value in row.items() if key != SOURCE} for row in rows]
        batch = self.inner(rows if SOURCE in columns_read(self.inner) else bare)
        if self.sources:
            batch[SOURCE] = torch.tensor(numbers)
        if self.drawn and isinstance(batch, MutableMapping):
            pairs = zip(names, _tokens(bare, batch), strict=True)
            batch[DRAWN] = torch.tensor(
                [[self.drawn.index(name), tokens] for name, tokens in pairs if name in self.drawn]
            )
        return batch

    def _number(self, source: Any) -> int:
        if source not in self.sources:
            raise ValueError(
                f"loss: it names the sources {', '.join(self.sources)}; a row comes from {source!r}; add a loss for that source, or "
                "leave its rows out"
            )
        return self.sources.index(source)


def _tokens(rows: Sequence[Mapping[str, Any]], batch: Mapping[str, Any]) -> list[int]:
    """Tokens of each row: as collated where a row of the batch is one of the data, else as it came."""
    mask: Any = batch.get("attention_mask")
    if torch.is_tensor(mask) and mask.dim() == 2 and len(mask) == len(rows):
        return mask.sum(1).tolist()
    return [len(row["input_ids"]) if "input_ids" in row else 0 for row in rows]
