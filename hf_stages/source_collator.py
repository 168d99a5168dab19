"""Carries each row's source through a collator that knows nothing of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_stages.losses._on_source import SOURCE


@dataclass(frozen=True)
class SourceCollator:
    """Takes the ``source`` column out, collates the rest, and adds the sources' numbers."""

    inner: Any
    sources: tuple[str, ...]

    def __call__(self, rows: Sequence[Any]) -> Any:
        if not all(isinstance(row, Mapping) and SOURCE in row for row in rows):
            return self.inner(rows)
        numbers = [self._number(row[SOURCE]) for row in rows]
        batch = self.inner([{key: value for key, value in row.items() if key != SOURCE} for row in rows])
        batch[SOURCE] = torch.tensor(numbers)
        return batch

    def _number(self, source: Any) -> int:
        if source not in self.sources:
            raise ValueError(
                f"loss: it names the sources {', '.join(self.sources)}; a row comes from {source!r}; add a loss for that source, or "
                "leave its rows out"
            )
        return self.sources.index(source)
