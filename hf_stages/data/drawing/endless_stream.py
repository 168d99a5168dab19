"""Repeats a stream for as many passes as a stage needs, from any example on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset

from hf_stages.core.randomness import seed_data, seed_of


class EndlessStream(IterableDataset):
    """Joins pass after pass over a stream into one.

    Trainer ends an epoch where a stream runs dry, in the middle of an accumulation window; the gradient then leaks
    into the next pass, and a resume past the first pass starts at the wrong example. A stream that never runs dry
    has neither problem. Examples before ``start`` are read again and dropped, before they are collated.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.start = 0

    def __iter__(self) -> Iterator[Any]:
        position, epoch = 0, 0
        while True:
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(epoch)
            seed_data(seed_of(self.seed, epoch, "pass"))
            before = position
            for example in self.dataset:
                if position >= self.start:
                    yield example
                position += 1
                if position >= self.start:
                    seed_data(seed_of(self.seed, position))
            if position == before:
                raise ValueError("train_dataset: the stream is empty: a pass over it gave no example")
            epoch += 1
