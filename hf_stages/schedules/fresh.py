"""A new learning-rate schedule for the stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from hf_stages.core.curves import Curve
from hf_stages.core.duration import Duration, as_warmup, warmup_steps
from hf_stages.schedules.base import (
    Defaults,
    Piece,
    Schedule,
    Span,
    as_shape,
    check_optimizer,
    check_rate,
    curve_shape,
    squeezed_warmup,
    trainer_shape,
)


@dataclass(frozen=True)
class Fresh(Schedule):
    """A new schedule: the rate warms up to ``peak``, then follows ``shape``. The optimizer starts empty.

    >>> from hf_stages.core.curves import Cosine
    >>> span = Fresh(peak=1e-3, warmup="10 steps", shape=Cosine(1, 0)).span(Defaults(5e-5), total=110, parent_lr=None)
    >>> span.lr(5), span.lr(10), span.lr(60)
    (0.0005, 0.001, 0.0005)
    """

    peak: float | None = None
    """None: ``learning_rate`` of the stage's (or the run's) args."""
    warmup: int | float | str | Duration | None = None
    """Steps, a share below 1, ``"100 steps"`` or ``"6 %"``. None: the args' own."""
    shape: str | Curve | None = None
    """A curve that multiplies the peak, or a ``lr_scheduler_type``. None: the args' own."""
    optimizer: Literal["reset", "carry"] = "reset"
    """``carry`` continues with the parent's moments."""

    def __post_init__(self) -> None:
        check_optimizer("Fresh", self.optimizer)
        if self.peak is not None:
            check_rate("Fresh", "peak", self.peak, zero=True)
        if self.warmup is not None:
            object.__setattr__(self, "warmup", as_warmup(self.warmup))
        object.__setattr__(self, "shape", as_shape(self.shape))

    def span(self, defaults: Defaults, *, total: int, parent_lr: float | None) -> Span:
        peak = self.peak if self.peak is not None else defaults.learning_rate
        warmup = warmup_steps(self.warmup if self.warmup is not None else defaults.warmup, total)
        if isinstance(self.shape, Curve):
            return Span(peak, warmup, total, curve_shape(self.shape, warmup, total))
        name = self.shape if self.shape is not None else defaults.shape
        kwargs = defaults.shape_kwargs if self.shape is None else {}
        name = str(getattr(name, "value", name))
        return Span(peak, warmup, total, trainer_shape(name, warmup, total, kwargs, peak=peak))

    def squeezed(self, piece: Piece, steps: int, rate: float) -> Fresh:
        return replace(self, warmup=squeezed_warmup(piece, steps), peak=rate)
