"""What a schedule is, and the span that it declares: one learning-rate shape, over one stage or over several.

Positions in a span are steps ``s`` from its start. A span knows nothing of stages: the plan gives each stage its piece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from numbers import Real
from typing import Any, Literal

from hf_stages.core.curves import Curve, as_curve


def check_optimizer(schedule: str, optimizer: Any) -> None:
    if optimizer not in ("reset", "carry"):
        raise ValueError(f"{schedule}: optimizer: expected 'reset' or 'carry', got {optimizer!r}")


def as_shape(shape: Any, key: str = "shape") -> Any:
    """Turn ``"Linear(1, 0)"`` into a curve; a ``lr_scheduler_type`` stays as it is."""
    if shape is not None and not isinstance(shape, str | Curve):
        raise ValueError(f'{key}: expected a lr_scheduler_type or a curve such as "Cosine(1, 0)", got {shape!r}')
    return as_curve(shape) if isinstance(shape, str) and "(" in shape else shape


def check_rate(schedule: str, key: str, rate: Any, *, zero: bool = False) -> None:
    """Check a learning rate that a schedule rises to; ``zero`` says that it may be 0."""
    number = isinstance(rate, Real) and not isinstance(rate, bool)
    if not number or not 0 <= rate < float("inf") or (rate == 0 and not zero):
        raise ValueError(f"{schedule}: {key}: expected a {'' if zero else 'positive '}learning rate, got {rate!r}")


@dataclass(frozen=True)
class Span:
    """A declared learning rate over steps ``s``: ``peak * shape(s)``."""

    peak: float
    warmup: int
    """Steps before the peak."""
    total: int
    """The span's length in steps."""
    shape: Callable[[float], float] = field(compare=False)
    peaks: tuple[float, ...] = ()
    """Positions of further peaks, where the rate rises again after the warmup."""

    def lr(self, s: float) -> float:
        return self.peak * self.shape(s)

    def highest(self, s0: float, s1: float) -> float:
        """Return the highest rate between two positions; a stage that resumes a span may lie behind its peak."""
        places = [s0 + (s1 - s0) * k / 400 for k in range(401)]
        return max(self.lr(s) for s in [*places, *(s for s in (self.warmup, *self.peaks) if s0 <= s <= s1)])


@dataclass(frozen=True)
class Piece:
    """The part of a span that one stage runs through."""

    span: Span
    start: float
    """The position in the span at which the stage begins."""
    steps: int
    """Updates of the stage, as planned."""


@dataclass(frozen=True)
class Defaults:
    """What a schedule takes from TrainingArguments where it says nothing itself."""

    learning_rate: float
    warmup: float = 0
    shape: str = "linear"
    shape_kwargs: Mapping[str, Any] = field(default_factory=dict)


class Schedule:
    """Base of all schedules: a frozen dataclass that says which learning rates a stage trains with.

    A schedule of your own defines ``span`` and a field ``peak`` (or ``with_peak``); plans, ``hf-stages versus`` and
    ``hf-stages probe-lr`` then work with it.

    >>> @dataclass(frozen=True)
    ... class Triangle(Schedule):
    ...     peak: float = 1e-3
    ...     def span(self, defaults, *, total, parent_lr):
    ...         return Span(self.peak, 0, total, lambda s: 1 - abs(2 * s / total - 1))
    >>> span = Triangle().with_peak(4e-3).span(Defaults(5e-5), total=100, parent_lr=None)
    >>> span.lr(0), span.lr(25), span.lr(50)
    (0.0, 0.002, 0.004)
    """

    optimizer: Literal["reset", "carry"] = "reset"
    """``carry``: the optimizer goes on with the moments of the stage before; ``reset``: it starts empty."""
    resumes: bool = False
    """True: the shape of the stage before goes on, so ``span`` is asked only where there is no stage before."""

    def span(self, defaults: Defaults, *, total: int, parent_lr: float | None) -> Span:
        """The learning rate over ``total`` steps. ``parent_lr`` is what the stage before ends with, if there is one."""
        raise NotImplementedError(f"{type(self).__name__} must define span(defaults, *, total, parent_lr)")

    def check(self, span: Span, steps: int) -> None:
        """Raise ValueError where the planned span does not suit a stage of ``steps`` updates."""
        if span.warmup > steps:
            raise ValueError(
                f"a warmup of {span.warmup} steps is longer than the stage ({steps} steps); shorten the warmup or "
                "lengthen the stage"
            )

    def with_peak(self, rate: float) -> Schedule:
        """The same schedule with its peak at ``rate``: by default in the field ``peak``."""
        names = {known.name for known in fields(self)} if is_dataclass(self) else set[str]()
        if "peak" not in names:
            name = type(self).__name__
            raise ValueError(f"{name}: expected a field `peak` or a method with_peak(rate), to train at other rates")
        return replace(self, peak=rate)  # type: ignore[type-var]

    def squeezed(self, piece: Piece, steps: int, rate: float) -> Schedule:
        """The same shape within fewer updates and with its peak at ``rate``, for a short trial of the stage."""
        return self.with_peak(rate)


def squeezed_warmup(piece: Piece, steps: int) -> int:
    """The warmup's share of a stage in ``steps`` updates: at least one where there is any, and never all of them."""
    warmup = round(piece.span.warmup / piece.steps * steps)
    return min(max(warmup, min(piece.span.warmup, 1)), steps - 1)


def trainer_shape(
    name: str, warmup: int, total: int, kwargs: Mapping[str, Any], *, peak: float
) -> Callable[[float], float]:
    """Return Trainer's schedule of that name as a function of the step.

    Some shapes end at a rate, not at a share of the peak (``polynomial``, ``min_lr``), so they need the peak.
    """
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak or 1.0)
    try:
        scheduler = get_scheduler(
            name, optimizer, num_warmup_steps=warmup, num_training_steps=total, scheduler_specific_kwargs=dict(kwargs)
        )
    except ValueError as error:
        raise ValueError(f"schedule shape {name!r}: {error}; expected a lr_scheduler_type or a curve") from error
    lambdas = getattr(scheduler, "lr_lambdas", None)
    if lambdas is None:
        raise ValueError(
            f"schedule shape {name!r} reads metrics, so it is no function of progress and could not resume exactly; "
            "use a curve, and a gate such as Plateau to end the stage"
        )
    return lambdas[0]


def curve_shape(curve: Curve, warmup: int, total: int, *, start: float = 0.0) -> Callable[[float], float]:
    """Return a linear warmup from ``start`` to the curve's first value, followed by the curve."""

    def shape(s: float) -> float:
        if s < warmup:
            return start + (curve(0.0) - start) * s / warmup
        return curve((s - warmup) / max(total - warmup, 1))

    return shape
