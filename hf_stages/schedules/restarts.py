"""Cosine cycles of the learning rate."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal

from hf_stages.core.curves import Const, Curve, as_curve
from hf_stages.core.duration import Duration, as_warmup
from hf_stages.core.placed_errors import place_errors
from hf_stages.schedules.base import Defaults, Piece, Schedule, Span, check_optimizer, check_rate


@dataclass(frozen=True)
class Restarts(Schedule):
    """Cosine with warm restarts: in each cycle the rate falls along half a cosine, and the next one starts from a peak.

    This is SGDR (Loshchilov and Hutter, arXiv 1608.03983); their cycles of growing length are ``cycles=[1, 2, 4]``. The
    loss rises after a restart, so compare losses at the ends of cycles. The first cycle warms up from zero, later ones
    from the rate at which the cycle before ended.

    >>> from hf_stages.core.curves import Linear
    >>> span = Restarts(2, peak=1e-3, warmup="10 %", peaks=Linear(1, 0)).span(Defaults(5e-5), total=200, parent_lr=None)
    >>> [round(span.lr(s), 7) for s in (0, 10, 55, 100, 110, 155, 200)]
    [0.0, 0.001, 0.0005, 0.0, 0.0005, 0.00025, 0.0]
    """

    cycles: int | Sequence[float]
    """How many equally long cycles the stage has; or lengths relative to each other, such as ``[1, 2, 4]``."""
    peak: float | None = None
    """None: ``learning_rate`` of the stage's (or the run's) args."""
    warmup: float | str | Duration | Sequence[float | str | Duration] = 0.0
    """The share of each cycle that warms up: ``0.05`` or ``"5 %"``; a list has one for each cycle."""
    peaks: float | str | Curve = 1.0
    """A curve over the stage that multiplies the peak of each cycle, where it begins: ``"Linear(1, 0.2)"``."""
    floor: float = 0.0
    """The share of its peak that a cycle ends at."""
    optimizer: Literal["reset", "carry"] = "reset"
    """``carry`` continues with the parent's moments."""

    def __post_init__(self) -> None:
        check_optimizer("Restarts", self.optimizer)
        if self.peak is not None:
            check_rate("Restarts", "peak", self.peak, zero=True)
        object.__setattr__(self, "cycles", _cycles(self.cycles))
        object.__setattr__(self, "warmup", _warmups(self.warmup, len(self._lengths)))
        peaks = _peaks(self.peaks)
        object.__setattr__(self, "peaks", peaks.value if isinstance(peaks, Const) else peaks)
        if not _is_number(self.floor) or not 0 <= self.floor <= 1:
            raise ValueError(f"Restarts: floor: expected a share from 0 to 1, got {self.floor!r}")

    @property
    def _lengths(self) -> tuple[float, ...]:
        return (1.0,) * self.cycles if isinstance(self.cycles, int) else tuple(self.cycles)

    def span(self, defaults: Defaults, *, total: int, parent_lr: float | None) -> Span:
        edges = _edges(self._lengths, total)
        shares = self.warmup if isinstance(self.warmup, tuple) else (self.warmup,) * len(self._lengths)
        tops = [as_curve(self.peaks)(start / total) for start in edges[:-1]]
        if not any(tops):
            raise ValueError(f"Restarts: peaks: {self.peaks!r} is 0 where each cycle begins; expected one above 0")
        lengths = [end - start for start, end in itertools.pairwise(edges)]
        warmups = [_warmup_of(share, length) for share, length in zip(shares, lengths, strict=True)]

        def shape(s: float) -> float:
            cycle = min(max(bisect_right(edges, s) - 1, 0), len(lengths) - 1)
            done, warmup, top = s - edges[cycle], warmups[cycle], tops[cycle]
            if done < warmup:
                start = self.floor * tops[cycle - 1] if cycle else 0.0
                return start + (top - start) * done / warmup
            way = min((done - warmup) / (lengths[cycle] - warmup), 1.0)
            return top * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * way)))

        peak = self.peak if self.peak is not None else defaults.learning_rate
        later = tuple(float(start + warmup) for start, warmup in zip(edges[:-1], warmups, strict=True))[1:]
        return Span(peak, warmups[0], total, shape, later)

    def squeezed(self, piece: Piece, steps: int, rate: float) -> Restarts:
        """The first cycles that fit into so few updates, each at least one update long."""
        count = len(self._lengths)
        while count > 1 and not _fit(self._lengths[:count], steps):
            count -= 1
        cycles = count if isinstance(self.cycles, int) else self._lengths[:count]
        warmup = self.warmup[:count] if isinstance(self.warmup, tuple) else self.warmup
        return replace(self, cycles=cycles, warmup=warmup, peak=rate)


def _fit(lengths: Sequence[float], total: int) -> bool:
    """Whether every cycle has a step of its own."""
    try:
        _edges(lengths, total)
    except ValueError:
        return False
    return True


def _edges(lengths: Sequence[float], total: int) -> list[int]:
    """Return where cycles begin and the last one ends, in whole steps."""
    sums = [0.0, *itertools.accumulate(lengths)]
    edges = [round(total * done / sums[-1]) for done in sums]
    if any(end <= start for start, end in itertools.pairwise(edges)):
        raise ValueError(f"Restarts: cycles: {len(lengths)} of these lengths do not fit into {total} steps; use fewer")
    return edges


def _warmup_of(share: float | Duration, length: int) -> int:
    """Return a warmup in whole steps, rounded up as Trainer does; it is shorter than the cycle."""
    part = share.amount / 100 if isinstance(share, Duration) else share
    return min(math.ceil(part * length), length - 1)


def _cycles(cycles: Any) -> int | tuple[float, ...]:
    many = cycles if isinstance(cycles, list | tuple) else ()
    if isinstance(cycles, Integral) and not isinstance(cycles, bool) and int(cycles) > 0:
        return int(cycles)
    if many and all(_is_number(length) and length > 0 for length in many) and sum(many) < math.inf:
        return tuple(many)
    raise ValueError(
        f"Restarts: cycles: expected how many there are, or relative lengths such as [1, 2, 4], got {cycles!r}"
    )


def _warmups(warmup: Any, cycles: int) -> Any:
    if not isinstance(warmup, list | tuple):
        return _share(warmup)
    if len(warmup) != cycles:
        raise ValueError(f"Restarts: warmup: expected one share for each of {cycles} cycles, got {len(warmup)}")
    return tuple(_share(one) for one in warmup)


def _share(warmup: Any) -> float | Duration:
    """Read a share: a number below 1, or percent."""
    found = as_warmup(warmup)
    share = found.amount / 100 if isinstance(found, Duration) and found.unit == "percent" else found
    if isinstance(share, Duration) or not 0 <= share < 1:
        given = str(warmup) if isinstance(warmup, Duration) else warmup
        raise ValueError(f"Restarts: warmup: expected a share of each cycle such as 0.05 or '5 %', got {given!r}")
    return found


def _peaks(peaks: Any) -> Curve:
    with place_errors("Restarts: peaks"):
        curve = as_curve(peaks)
    if not all(curve(k / 64) >= 0 for k in range(65)) or not any(curve(k / 64) > 0 for k in range(65)):
        raise ValueError(f"Restarts: peaks: expected shares of the peak, none negative, got {peaks!r}")
    return curve


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
