"""What detectors read off a series of logged values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from statistics import fmean, median

Series = Sequence[tuple[int, float]]
"""(step, value), oldest first."""


def last_stretch(newest: Iterable[tuple[int, float]], holds: Callable[[float], bool]) -> list[tuple[int, float]]:
    """Return the last values in a row for which something holds, oldest first; none where it does not of the newest.

    >>> last_stretch([(40, 0.95), (30, 0.92), (20, 0.2), (10, 0.99)], lambda value: value > 0.9)
    [(30, 0.92), (40, 0.95)]

    Args:
        newest: (step, value), the newest first, as ``History.newest`` yields them.
        holds: Whether it holds of a value.
    """
    return list(takewhile(lambda entry: holds(entry[1]), newest))[::-1]


def length_of(stretch: Series) -> int:
    """Return the updates between the first and the last value of a stretch."""
    return stretch[-1][0] - stretch[0][0] if stretch else 0


def is_flat(values: Sequence[float], *, least_fall: float) -> bool:
    """Whether values do not fall: the mean of the second half is no less than the first one's minus this share.

    >>> is_flat([2.0, 2.01, 1.99, 2.0], least_fall=0.02), is_flat([2.0, 1.9, 1.8, 1.7], least_fall=0.02)
    (True, False)
    """
    if len(values) < 2:
        return True
    half = len(values) // 2
    first, second = fmean(values[:half]), fmean(values[-half:])
    return first - second < least_fall * abs(first)


def lowest_level(values: Sequence[float], *, width: int = 5) -> float:
    """Return the lowest median of ``width`` values in a row: the best level that one lucky value does not make.

    >>> lowest_level([4.0, 3.0, 0.1, 3.1, 2.9, 3.2])
    3.0
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < width:
        return min(finite, default=math.inf)
    return min(median(finite[start : start + width]) for start in range(len(finite) - width + 1))
