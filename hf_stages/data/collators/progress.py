"""Tells a collator the progress of the batch that it collates.

Workers fetch batches ahead, so the trainer's progress at that moment is not the batch's. The sampler runs in order in
the main process and sends each index with its progress. Where the batch is fetched, the dataset notes the progress, and
the collator, which is called next in the same thread, takes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset, IterableDataset, Sampler

ProgressAt = Callable[[int, int], float]
"""(epoch, position of an example in it) -> progress t of the update that the example belongs to."""

_noted = threading.local()


def note_progress(t: float | None) -> None:
    _noted.t = t


def take_progress() -> float | None:
    """Return and forget the progress of the batch fetched last in this thread; None where no stage trains on it."""
    t = getattr(_noted, "t", None)
    _noted.t = None
    return t


class ProgressSampler(Sampler[tuple[float, Any]]):
    """Samples (t, index) for each index of a sampler that has an ``epoch`` and a ``start``."""

    def __init__(self, sampler: Any, place: ProgressAt) -> None:
        self.sampler, self.place = sampler, place

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[float, Any]]:
        epoch, start = self.sampler.epoch, self.sampler.start
        for position, index in enumerate(self.sampler, start):
            yield self.place(epoch, position), index


class ProgressDataset(Dataset):
    """Reads what ``ProgressSampler`` sends: passes the indices to the dataset, and notes the progress of the first."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, places: list[tuple[float, Any]]) -> list[Any]:
        rows = self.dataset.__getitems__([index for _, index in places])
        note_progress(places[0][0])
        return rows


class ProgressStream(IterableDataset):
    """Reads a stream from ``start`` on, and notes the progress of a batch's first example."""

    def __init__(self, stream: Any, place: ProgressAt) -> None:
        self.stream, self.place = stream, place

    def __iter__(self) -> Iterator[Any]:
        take_progress()
        for position, row in enumerate(self.stream, self.stream.start):
            if getattr(_noted, "t", None) is None:
                note_progress(self.place(0, position))
            yield row


@dataclass(frozen=True)
class AtProgress:
    """Calls a collator with its curves at the batch's progress.

    In evaluation they are at their end, and draws are fixed.
    """

    collator: Any
    declared: Any
    """The collator before it got the stage's tokenizer and model; the next stage starts from it."""

    def __call__(self, rows: Any) -> Any:
        return self.collator.at(take_progress())(rows)
