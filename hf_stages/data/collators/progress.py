"""How far a stage is, for a collator: carried with the batch, never counted.

Workers fetch ahead, so the trainer's own progress at the moment of collating says nothing of the batch at hand. The
sampler, which runs in order in the main process, sends each index's progress along; where the batch is fetched, the
dataset notes it, and the collator, called next in the same thread, takes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset, IterableDataset, Sampler

ProgressAt = Callable[[int, int], float]
"""(epoch, position of an example in it) -> progress t of the update that the example is of."""

_noted = threading.local()


def note_progress(t: float | None) -> None:
    _noted.t = t


def take_progress() -> float | None:
    """The progress of the batch that was fetched last in this thread, once; None where no stage is training on it."""
    t = getattr(_noted, "t", None)
    _noted.t = None
    return t


class ProgressSampler(Sampler[tuple[float, Any]]):
    """(t, index) for each index of a sampler that has an ``epoch`` and a ``start``."""

    def __init__(self, sampler: Any, place: ProgressAt) -> None:
        self.sampler, self.place = sampler, place

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[float, Any]]:
        epoch, start = self.sampler.epoch, self.sampler.start
        for position, index in enumerate(self.sampler, start):
            yield self.place(epoch, position), index


class ProgressDataset(Dataset):
    """Reads what ``ProgressSampler`` sends: the indices go to the dataset, the first one's progress is noted."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, places: list[tuple[float, Any]]) -> list[Any]:
        rows = self.dataset.__getitems__([index for _, index in places])
        note_progress(places[0][0])
        return rows


class ProgressStream(IterableDataset):
    """A stream from ``start`` on; the progress of a batch's first example is noted."""

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
    """A collator whose curves stand where the batch is; at their end, and drawing the same each time, in evaluation."""

    collator: Any
    declared: Any
    """The collator before it met the stage's tokenizer and model: the next stage starts from it."""

    def __call__(self, rows: Any) -> Any:
        return self.collator.at(take_progress())(rows)
