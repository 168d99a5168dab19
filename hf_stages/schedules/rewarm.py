"""Warm up again from where the parent ended."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from hf_stages.core.curves import Cosine, Curve
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
class Rewarm(Schedule):
    """The rate goes from the parent's last one up (or down) to ``to`` over ``warmup``, then along ``then``.

    Use it for long-context and cooldown stages: SmolLM3 warms up again over 1,000 steps to 2e-5 and follows a cosine.

    >>> span = Rewarm(to=1e-4, warmup=10, then=Cosine(1, 0)).span(Defaults(5e-5), total=110, parent_lr=2e-5)
    >>> [round(span.lr(s), 7) for s in (0, 5, 10, 110)]
    [2e-05, 6e-05, 0.0001, 0.0]
    """

    to: float
    """The learning rate after the warmup."""
    warmup: int | float | str | Duration = 0.05
    """Steps, a share below 1, ``"100 steps"`` or ``"6 %"``."""
    then: str | Curve = Cosine(1.0, 0.0)
    """A curve that multiplies ``to``, or a ``lr_scheduler_type``."""
    optimizer: Literal["reset", "carry"] = "carry"
    """``reset`` begins with an empty optimizer."""

    def __post_init__(self) -> None:
        check_optimizer("Rewarm", self.optimizer)
        check_rate("Rewarm", "to", self.to)
        object.__setattr__(self, "warmup", as_warmup(self.warmup))
        object.__setattr__(self, "then", as_shape(self.then, "then"))

    def span(self, defaults: Defaults, *, total: int, parent_lr: float | None) -> Span:
        warmup = warmup_steps(self.warmup, total)
        start = (parent_lr or 0.0) / self.to
        if isinstance(self.then, Curve):
            return Span(self.to, warmup, total, curve_shape(self.then, warmup, total, start=start))
        after = trainer_shape(self.then, 0, max(total - warmup, 1), {}, peak=self.to)

        def shape(s: float) -> float:
            return start + (1 - start) * s / warmup if s < warmup else after(s - warmup)

        return Span(self.to, warmup, total, shape)

    def with_peak(self, rate: float) -> Rewarm:
        return replace(self, to=rate)

    def squeezed(self, piece: Piece, steps: int, rate: float) -> Rewarm:
        return replace(self, warmup=squeezed_warmup(piece, steps), to=rate)
