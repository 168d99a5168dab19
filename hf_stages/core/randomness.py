"""Keyed randomness: every place that draws gets its own seed from what it is, never from what ran before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import xxhash


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from anything that names a place.

    >>> seed_of(42, "language", 3) == seed_of(42, "language", 3) != seed_of(42, "code", 3)
    True
    """
    return xxhash.xxh3_64_intdigest("\x1f".join(map(str, parts)).encode()) >> 1


def seed_data(seed: int) -> None:
    """Seed what data loading draws from. CUDA's generators are left alone: fetching does not use them."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Run a block without moving the generators that training draws from."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
