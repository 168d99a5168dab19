"""Computes a shuffle instead of storing it: position -> index, for any n, in constant memory.

It is a balanced Feistel network over the smallest even number of bits that holds n, walking cycles until the value is
below n (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Any position of any epoch is
reached in constant time, so resuming at step 1,000,000 costs what resuming at step 1 costs.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 6
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def permute(positions: np.ndarray, n: int, key: int | np.ndarray) -> np.ndarray:
    """Return the indices at ``positions`` of the shuffle of ``range(n)`` that ``key`` chooses: one key, or one per
    position.

    >>> sorted(permute(np.arange(10), 10, key=7).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    if n <= 1:
        return np.zeros(len(positions), dtype=np.int64)
    half = np.uint64(max(((n - 1).bit_length() + 1) // 2, 1))
    rounds = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _M1
    if isinstance(key, np.ndarray):
        keys = _mix(rounds[:, None] + key.astype(np.uint64))
    else:
        keys = _mix(rounds + np.uint64(key & (2**64 - 1)))
    values = _feistel(positions.astype(np.uint64), half, keys)
    outside = values >= n
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys[:, outside] if keys.ndim > 1 else keys)
        outside = values >= n
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << half) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """Mix the bits: the finalizer of splitmix64."""
    values = (values ^ (values >> np.uint64(30))) * _M1
    values = (values ^ (values >> np.uint64(27))) * _M2
    return values ^ (values >> np.uint64(31))
