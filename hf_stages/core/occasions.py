"""On which updates something that costs time is done: a pure function of the update's number, so a resume agrees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class Occasions:
    """Base of all occasions: a frozen dataclass that says how far apart updates are that something is done on."""

    def gap(self, update: int) -> int:
        """Return how many updates lie between two occasions around ``update``."""
        raise NotImplementedError(f"{type(self).__name__} must define gap(update)")

    def between(self, before: int, now: int) -> bool:
        """Whether an occasion lies after the update ``before`` and not after the update ``now``."""
        gap = self.gap(now)
        return now // gap > before // gap


@dataclass(frozen=True)
class EachUpdates(Occasions):
    """Every so many updates. A whole number in the place of occasions means the same.

    >>> [update for update in range(1, 13) if EachUpdates(5).between(update - 1, update)]
    [5, 10]
    """

    updates: int
    """How many updates lie between two occasions."""

    def __post_init__(self) -> None:
        _check_count("EachUpdates: updates", self.updates)

    def gap(self, update: int) -> int:
        return self.updates


@dataclass(frozen=True)
class LogSpaced(Occasions):
    """Each update at first, then further and further apart, up to ``widest``. Gaps are powers of two.

    >>> [update for update in range(1, 33) if LogSpaced(growth=0.2, widest=4).between(update - 1, update)]
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 24, 28, 32]
    """

    growth: float = 0.02
    """The gap as a share of the updates that are done. With 0.02 each of the first 100 updates is an occasion."""
    widest: int = 256
    """The largest gap."""

    def __post_init__(self) -> None:
        _check_count("LogSpaced: widest", self.widest)
        if isinstance(self.growth, bool) or not isinstance(self.growth, int | float) or not 0 < self.growth <= 1:
            raise ValueError(f"LogSpaced: growth: expected a share above 0 and at most 1, got {self.growth!r}")

    def gap(self, update: int) -> int:
        wanted = max(int(update * self.growth), 1)
        return 1 << (min(wanted, self.widest).bit_length() - 1)


def as_occasions(value: Any, where: str) -> Occasions | None:
    """Make occasions of a whole number (every so many updates). None stays None: whenever it is asked."""
    if value is None or isinstance(value, Occasions):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return EachUpdates(value)
    raise ValueError(f"{where}: every: expected a number of updates, LogSpaced(...) or None, got {value!r}")


def _check_count(where: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{where}: expected a whole number of updates, at least 1, got {value!r}")
