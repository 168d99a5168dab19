"""Keeps each row's source through a collator that does not know of it."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_stages.core.batch import DRAWN, SOURCE
from hf_stages.data.collators.base import columns_read, find_pair_collator
from hf_stages.data.drawing.scores import count_tokens
from hf_stages.models.real_tokens import real_tokens, shape_of


@dataclass(frozen=True)
class SourceCollator:
    """Takes the ``source`` column out of the rows, collates the rest, and adds the sources' numbers to the batch."""

    inner: Any
    sources: tuple[str, ...] = ()
    """The sources that the stage's loss treats differently."""
    drawn: tuple[str, ...] = ()
    """The sources that the stage draws from; their rows and tokens are counted."""

    def __call__(self, rows: Sequence[Any]) -> Any:
        if not all(isinstance(row, Mapping) and SOURCE in row for row in rows):
            return self.inner(rows)
        names = [row[SOURCE] for row in rows]
        numbers = [self._number(name) for name in names] if self.sources else []
        bare = [{key: value for key, value in row.items() if key != SOURCE} for row in rows]
        batch = self.inner(rows if SOURCE in columns_read(self.inner) else bare)
        if self.sources:
            batch[SOURCE] = self._number_per_row(torch.tensor(numbers), batch)
        if self.drawn and isinstance(batch, MutableMapping):
            pairs = zip(names, _tokens_per_row(bare, batch), strict=True)
            batch[DRAWN] = torch.tensor(
                [[self.drawn.index(name), tokens] for name, tokens in pairs if name in self.drawn]
            )
        return batch

    def _number_per_row(self, numbers: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return a source number for each row of the batch; the loss selects rows by it."""
        held = next((batch[key] for key in ("labels", "input_ids") if torch.is_tensor(batch.get(key))), None)
        if held is None or not held.dim() or len(held) == len(numbers):
            return numbers
        if find_pair_collator(self.inner) is not None and len(held) == 2 * len(numbers):
            return numbers.repeat_interleave(2)
        raise ValueError(
            f"loss: it differs by source, and the data_collator makes {len(held)} rows of {len(numbers)} examples (it "
            "packs or splits), so no row is of one source; pad instead, or give all sources one loss"
        )

    def _number(self, source: Any) -> int:
        if source not in self.sources:
            raise ValueError(
                f"loss: it names the sources {', '.join(self.sources)}; a row comes from {source!r}; add a loss for "
                "that source, or leave its rows out"
            )
        return self.sources.index(source)


def _tokens_per_row(rows: Sequence[Mapping[str, Any]], batch: Mapping[str, Any]) -> list[int]:
    """Count the tokens of each row: after collating where each row became one row or a pair of rows, else before it.

    Packed conversations allow neither count. There the batch's tokens are divided equally among the rows.
    """
    mask: Any = batch.get("attention_mask")
    readable = torch.is_tensor(mask) and (mask.dim() == 2 or mask.shape == shape_of(batch))
    if readable and len(mask) in (len(rows), 2 * len(rows)):
        return mask.reshape(len(rows), -1).sum(1).tolist()
    if all("input_ids" in row for row in rows):
        return [count_tokens(row) for row in rows]
    real = real_tokens(batch)
    total = int(real.sum()) if real is not None else 0
    return [total * (i + 1) // len(rows) - total * i // len(rows) for i in range(len(rows))]
