"""Seeds made of names: each place that draws random numbers has its own seed, whatever was drawn before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import xxhash


def seed_of(*parts: int | str) -> int:
    """Make a 63-bit seed from the numbers and words that identify a place.

    >>> seed_of(42, "language", 3) == seed_of(42, "language", 3) != seed_of(42, "code", 3)
    True
    """
    return xxhash.xxh3_64_intdigest("\x1f".join(map(str, parts)).encode()) >> 1


def seed_data(seed: int) -> None:
    """Seed the generators that data loading draws from. It uses none of CUDA's, which stay as they are."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Run a block and then put the generators that training draws from back as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
