"""Numbers that change with the progress ``t`` of a stage, from 0 to 1. A curve may stand wherever a float may.

Curves have no state: the same ``t`` always gives the same value, so a resumed run goes on exactly.
"""

from __future__ import annotations

import ast
import math
import sys
from dataclasses import dataclass, fields

from hf_stages.core.did_you_mean import did_you_mean


class Curve:
    """Base of all curves: a frozen dataclass that is called with ``t``. Values of ``t`` outside [0, 1] are clamped."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.type in ("float", float) and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"{type(self).__name__}: {field.name}: expected a number, got {value!r}")
            if field.type in ("float", float) and not abs(value) <= sys.float_info.max:
                raise ValueError(f"{type(self).__name__}: {field.name}: expected a finite number, got {value!r}")

    def __call__(self, t: float) -> float:
        return self.value_at(min(max(t, 0.0), 1.0))

    def value_at(self, t: float) -> float:
        raise NotImplementedError(f"{type(self).__name__} must define value_at(t)")


@dataclass(frozen=True)
class Const(Curve):
    """The same value at every ``t``.

    >>> Const(2)(0.3)
    2.0
    """

    value: float
    """The value."""

    def value_at(self, t: float) -> float:
        return float(self.value)


@dataclass(frozen=True)
class Linear(Curve):
    """A straight line from ``start`` to ``end``.

    >>> Linear(1, 0)(0.25)
    0.75
    """

    start: float
    """The value at t = 0."""
    end: float
    """The value at t = 1."""

    def value_at(self, t: float) -> float:
        return float(self.start * (1 - t) + self.end * t)


@dataclass(frozen=True)
class Cosine(Curve):
    """Half a cosine from ``start`` to ``end``: flat at both ends (SGDR, arXiv 1608.03983).

    >>> Cosine(1, 0)(0.5)
    0.5
    """

    start: float = 1.0
    """The value at t = 0."""
    end: float = 0.0
    """The value at t = 1."""

    def value_at(self, t: float) -> float:
        return float(self.end + (self.start - self.end) * (0.5 * (1 + math.cos(math.pi * t))))


@dataclass(frozen=True)
class WSD(Curve):
    """Warmup, a constant value, decay (warmup-stable-decay; MiniCPM, arXiv 2404.06395).

    >>> [round(WSD(warmup=0.1, decay=0.2)(t), 9) for t in (0, 0.05, 0.5, 0.9, 1)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    warmup: float = 0.1
    """The share of the stage in which the value goes from ``start`` to ``peak``."""
    decay: float = 0.2
    """The share at the end of the stage in which the value goes from ``peak`` to ``end``."""
    start: float = 0.0
    """The value at t = 0."""
    peak: float = 1.0
    """The value in between."""
    end: float = 0.0
    """The value at t = 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup < 0 or self.decay < 0 or self.warmup + self.decay > 1:
            raise ValueError(
                f"WSD: warmup and decay are shares that sum to at most 1, got {self.warmup} and {self.decay}"
            )

    def value_at(self, t: float) -> float:
        if t < self.warmup:
            return float(self.start + (self.peak - self.start) * t / self.warmup)
        if self.decay and t > 1 - self.decay:
            return float(self.end + (self.peak - self.end) * (1 - t) / self.decay)
        return float(self.peak)


@dataclass(frozen=True)
class Step(Curve):
    """A staircase of ``(t, value)`` pairs: each value holds from its ``t`` to that of the next pair.

    >>> Step(((0, 1), (0.5, 10)))(0.7)
    10.0
    """

    points: tuple[tuple[float, float], ...]
    """The pairs, such as ``[[0, 1], [0.5, 10]]``; the first begins at 0."""

    def __post_init__(self) -> None:
        try:
            points = tuple((float(t), float(value)) for t, value in self.points)
        except (TypeError, ValueError):
            raise ValueError(f"Step: expected points (t, value), all numbers, got {self.points!r}") from None
        starts = [t for t, _ in points]
        if not all(math.isfinite(v) for point in points for v in point):
            raise ValueError(f"Step: expected points (t, value), all finite numbers, got {self.points!r}")
        if not points or starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] > 1:
            raise ValueError(f"Step: expected points (t, value) with t rising from 0 to at most 1, got {self.points}")
        object.__setattr__(self, "points", points)

    def value_at(self, t: float) -> float:
        return next(value for start, value in reversed(self.points) if t >= start)


@dataclass(frozen=True)
class Join(Curve):
    """Several curves, one after another. Each runs from 0 to 1 within its own piece.

    >>> Join((Linear(0, 1), Const(1)), until=(0.1,))(0.05)
    0.5
    """

    curves: tuple[Curve, ...]
    """The curves in their order; numbers and text will do, such as ``["Linear(0, 1)", 1]``."""
    until: tuple[float, ...]
    """The ``t`` at which each curve but the last ends, such as ``[0.1]``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "curves", tuple(as_curve(c) for c in self.curves))
        object.__setattr__(self, "until", tuple(float(u) for u in self.until))
        edges = [0.0, *self.until, 1.0]
        if len(self.curves) != len(self.until) + 1 or edges != sorted(set(edges)):
            raise ValueError(
                f"Join: expected one edge between each two curves, rising between 0 and 1; got {len(self.curves)} "
                f"curves and until={self.until}"
            )

    def value_at(self, t: float) -> float:
        edges = (0.0, *self.until, 1.0)
        index = sum(t >= edge for edge in self.until)
        start, end = edges[index], edges[index + 1]
        return self.curves[index]((t - start) / (end - start))


CURVES = {curve.__name__: curve for curve in (Const, Linear, Cosine, WSD, Step, Join)}


def as_curve(value: float | str | Curve) -> Curve:
    """Make a curve from a curve, a number, or text such as ``"Linear(1, 0)"``.

    >>> as_curve("Linear(0, end=0.3)")
    Linear(start=0, end=0.3)
    """
    if isinstance(value, Curve):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected a number or a curve such as Linear(1, 0), got {value!r}")
    if isinstance(value, str):
        return _parse(value)
    return Const(float(value))


def _parse(text: str) -> Curve:
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f'cannot read the curve {text!r}: expected text such as "Linear(1, 0)"') from error
    return _build(body, text)


def _build(node: ast.AST, text: str) -> Curve:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError(f'cannot read the curve {text!r}: expected text such as "Linear(1, 0)"')
    if node.func.id not in CURVES:
        raise ValueError(f"unknown curve {node.func.id!r} in {text!r}; {did_you_mean(node.func.id, CURVES)}")
    curve = CURVES[node.func.id]
    arguments = [_literal(argument, text) for argument in node.args]
    if any(keyword.arg is None for keyword in node.keywords):
        raise ValueError(f"cannot read the curve {text!r}: ** is not allowed")
    keywords = {str(keyword.arg): _literal(keyword.value, text) for keyword in node.keywords}
    try:
        return curve(*arguments, **keywords)
    except TypeError as error:
        names = ", ".join(f.name for f in fields(curve))
        raise ValueError(f"cannot read the curve {text!r}: {node.func.id} takes {names}") from error


def _literal(node: ast.AST, text: str):
    if isinstance(node, ast.Call):
        return _build(node, text)
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_literal(element, text) for element in node.elts)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"cannot read the curve {text!r}: its arguments must be numbers") from error
