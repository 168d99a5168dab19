"""Computes the order of a map-style dataset from (seed, epoch, position), so that a resumed run replays nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch.utils.data import Dataset, Sampler

from hf_stages.core.randomness import seed_data, seed_of
from hf_stages.data.drawing.permutation import permute

Order = Callable[[int, np.ndarray], Sequence[int]]
"""(epoch, positions) -> indices."""

_CHUNK = 4096


def shuffled(n: int, seed: int) -> Order:
    return lambda epoch, positions: permute(positions, n, seed_of(seed, epoch)).tolist()


def sequential(n: int) -> Order:
    return lambda epoch, positions: positions.tolist()


def order_of_sampler(sampler: Any, seed: int) -> Order:
    """Return the order that another sampler draws. It draws once per epoch, with a generator seeded by the epoch."""
    drawn: dict[int, np.ndarray] = {}

    def order(epoch: int, positions: np.ndarray) -> Sequence[int]:
        if epoch not in drawn:
            drawn.clear()
            sampler.generator = torch.Generator().manual_seed(seed_of(seed, epoch))
            drawn[epoch] = np.fromiter(sampler, dtype=np.int64)
        return drawn[epoch][positions].tolist()

    return order


class StageSampler(Sampler[int]):
    """Samples the indices of one epoch, from any position on.

    ``rounds`` is the number of examples that all ranks take together for one micro-batch: the epoch is filled up to
    a multiple of it from its own start, so that accelerate never fills up from wherever a resumed epoch began.
    """

    def __init__(self, n: int, order: Order, *, rounds: int = 1) -> None:
        self.n = n
        self.order = order
        self.length = -(-n // rounds) * rounds
        self.epoch, self.start = 0, 0

    def at(self, epoch: int, start: int = 0) -> None:
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        for first in range(self.start, self.length, _CHUNK):
            positions = np.arange(first, min(first + _CHUNK, self.length)) % self.n
            yield from self.order(self.epoch, positions)


class SeededDataset(Dataset):
    """Seeds the random transforms and the collator of a map-style dataset by (stage, epoch, the batch).

    Without this, a batch fetched ahead of a checkpoint would be masked or augmented differently after a resume.
    The epoch lives in shared memory, so that persistent workers see it.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        batch = xxhash.xxh3_64_intdigest(np.asarray(indices, dtype=np.int64).tobytes())
        seed_data(seed_of(self.seed, int(self.epoch[0]), batch))
        if hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(indices)
        return [self.dataset[index] for index in indices]
