"""Which micro-batch is being trained on, for parts of a model that draw random numbers of their own.

Such a part draws from a generator that is seeded with this place, and so draws the same after a resume, on every rank,
and however many random numbers others drew before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from hf_stages.core.randomness import seed_of


@dataclass(frozen=True)
class MicroBatch:
    """The place of a micro-batch in a run."""

    seed: int
    """The stage's."""
    step: int
    """Updates that the stage has done before."""
    number: int
    """The micro-batch within the update, from 0."""

    def generator(self, *purpose: int | str, device: str | torch.device = "cpu") -> torch.Generator:
        """Make a generator for one purpose, which no other purpose shares."""
        seed = seed_of(self.seed, "micro-batch", self.step, self.number, *purpose)
        return torch.Generator(device=device).manual_seed(seed)


_current: list[MicroBatch] = []


@contextmanager
def in_micro_batch(place: MicroBatch) -> Iterator[None]:
    """Say, within the block, which micro-batch is being trained on."""
    _current.append(place)
    try:
        yield
    finally:
        _current.pop()


def current_micro_batch() -> MicroBatch | None:
    """Return the micro-batch that a stage is being trained on; None outside of a stage's training."""
    return _current[-1] if _current else None
