"""When a value is a spike: far above the values before it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

SIGMA, WINDOW, LEAST = 6.0, 128, 64
"""Standard deviations above the mean, values that are compared with, and how many of them there must be at least."""
NARROWEST = 0.005
"""The standard deviation counts as this share of the mean at least: a rise of 3 % is no spike, however flat it was."""


def spike_limit(before: Sequence[float], *, sigma: float = SIGMA, least: int = LEAST) -> float:
    """Return what a value must exceed to be a spike after these; infinite where there are too few of them.

    The window holds earlier values alone, and none that was a spike itself: a spike must not widen its own limit.

    >>> spike_limit([1.0, 3.0] * 32)
    8.0
    >>> spike_limit([2.0] * 64), spike_limit([2.0] * 63)
    (2.06, inf)
    """
    if len(before) < least:
        return float("inf")
    mean = fmean(before)
    return mean + sigma * max(pstdev(before, mean), NARROWEST * abs(mean))


def find_spikes(
    values: Sequence[float], *, sigma: float = SIGMA, window: int = WINDOW, least: int = LEAST
) -> list[int]:
    """Return the positions of values that are spikes. Those that are not finite are, and enter no window either.

    >>> find_spikes([1.0, 3.0] * 40 + [9.0, 2.0, float("nan")])
    [80, 82]
    """
    accepted: list[float] = []
    spikes = []
    for position, value in enumerate(values):
        if value - value == 0 and value <= spike_limit(accepted[-window:], sigma=sigma, least=least):
            accepted.append(value)
        else:
            spikes.append(position)
    return spikes
