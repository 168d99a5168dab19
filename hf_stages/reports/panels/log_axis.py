"""A logarithmic axis: where a value stands, its ticks, and what becomes of values that have no logarithm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hf_stages.reports.pages.svg import round_step

_ROOM = 0.04
"""The share of the axis that stays free at each end."""


@dataclass(frozen=True)
class LogAxis:
    """An axis from ``low`` to ``high``. Values at or below ``floor`` stand at its very beginning."""

    low: float
    high: float
    floor: float = 0.0
    """The greatest value that is not drawn where it is, but at the beginning; 0 floors what has no logarithm."""
    floored: bool = False
    """Whether there are such values: the beginning of the axis is theirs alone then."""
    floor_label: str = ""
    """How the beginning is labelled where there are such values; the floor itself if left out."""

    def at(self, value: float) -> float:
        """Return where a value stands: 0 at the beginning of the axis, 1 at its end.

        >>> axis = LogAxis(0.001, 1)
        >>> axis.at(0.001), round(axis.at(0.1), 3), axis.at(1), axis.at(-0.2), axis.at(float("nan"))
        (0.0, 0.667, 1.0, 0.0, 1.0)
        """
        if not math.isfinite(value):
            return 1.0
        if value <= max(self.floor, 0.0):
            return 0.0
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return min(max(share, 0.0), 1.0)

    def holds(self, value: float) -> bool:
        """Tell whether the axis reaches as far as a value."""
        return self.low <= value <= self.high or (self.floored and value <= self.floor)

    def ticks(self) -> list[tuple[float, str]]:
        """Return values to mark, with their labels; the floor has one of its own.

        >>> LogAxis(1, 1000).ticks()
        [(1.0, '1'), (10.0, '10'), (100.0, '100'), (1000.0, '1000')]
        >>> LogAxis(3.1, 4.2).ticks()
        [(3.2, '3.2'), (3.4, '3.4'), (3.6, '3.6'), (3.8, '3.8'), (4.0, '4'), (4.2, '4.2')]
        >>> LogAxis(0.0005, 1, floor=0.001, floored=True).ticks()[:2]
        [(0.001, '≤0.001'), (0.01, '0.01')]
        """
        inside = [value for value in _round_values(self.low, self.high) if not self.floored or self.at(value) > 0.08]
        floor = [(self.floor, self.floor_label or f"≤{self.floor:g}")] if self.floored else []
        return floor + [(value, _label(value)) for value in inside]


def axis_over(
    values: Iterable[float], *, floor: float = 0.0, top: float | None = None, floor_label: str = ""
) -> LogAxis:
    """Return the axis on which all finite values stand, with some room at both ends.

    Args:
        values: What is to be drawn; NaN and infinities do not count.
        floor: Values at or below it are drawn at the beginning of the axis.
        top: The least end of the axis.
        floor_label: How these are labelled.
    """
    finite = [value for value in values if math.isfinite(value)]
    shown = [value for value in finite if value > floor]
    floored = len(shown) < len(finite)
    low = min(shown, default=max(floor, 1e-3) if floor else 1.0)
    high = max([*shown, top or 0.0], default=low)
    if high < low * 1.02:
        low, high = low / 1.1, max(high, low) * 1.1
    room = (high / low) ** _ROOM
    below = room ** (3 if floored else 1)
    return LogAxis(low / below, high * room, floor, floored, floor_label)


def _round_values(low: float, high: float) -> list[float]:
    """Return at most about seven round values: powers of ten, or 1, 2 and 5 of each, or equal steps."""
    decades = math.log10(high / low)
    if decades < 0.75:
        every = round_step(high - low, 7)
        return [float(f"{k * every:.10g}") for k in range(math.ceil(low / every), math.floor(high / every) + 1)]
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    spacing = max(1, math.ceil(decades / 6))
    digits: Sequence[int] = (1,) if decades > 2.4 else (1, 3) if decades > 1.5 else (1, 2, 5)
    values = [float(f"{digit}e{power}") for power in range(first, last + 1, spacing) for digit in digits]
    return [value for value in values if low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9)]


def _label(value: float) -> str:
    """Write a tick: plainly, or with an exponent where that would be long."""
    text = f"{value:g}" if 1e-3 <= value < 1e5 else f"{value:.4e}"
    mantissa, mark, exponent = text.partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if mark else text
