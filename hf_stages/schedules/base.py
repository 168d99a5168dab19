"""A span: one declared learning-rate shape, over one stage or over several that resume it.

Positions in a span are steps ``s`` from its start. A span knows nothing of stages: the plan gives each stage
its piece ``[s0, s1]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from hf_stages.core.curves import Curve, as_curve


def check_optimizer(schedule: str, optimizer: Any) -> None:
    if optimizer not in ("reset", "carry"):
        raise ValueError(f"{schedule}: optimizer: expected 'reset' or 'carry', got {optimizer!r}")


def as_shape(shape: Any, key: str = "shape") -> Any:
    """``"Linear(1, 0)"`` becomes a curve; a ``lr_scheduler_type`` stays as it is."""
    if shape is not None and not isinstance(shape, str | Curve):
        raise ValueError(f'{key}: expected a lr_scheduler_type or a curve such as "Cosine(1, 0)", got {shape!r}')
    return as_curve(shape) if isinstance(shape, str) and "(" in shape else shape


def check_rate(schedule: str, key: str, rate: Any, *, zero: bool = False) -> None:
    """A learning rate that a schedule rises to; ``zero`` says that it may stay at 0."""
    number = isinstance(rate, Real) and not isinstance(rate, bool)
    if not number or not 0 <= rate < float("inf") or (rate == 0 and not zero):
        raise ValueError(f"{schedule}: {key}: expected a {'' if zero else 'positive '}learning rate, got {rate!r}")


@dataclass(frozen=True)
class Span:
    """Learning rate ``peak * shape(s)``. ``total`` is the span's length in steps, ``warmup`` the steps before the peak."""

    peak: float
    warmup: int
    total: int
    shape: Callable[[float], float] = field(compare=False)

    def lr(self, s: float) -> float:
        return self.peak * self.shape(s)

    def highest(self, s0: float, s1: float) -> float:
        """The highest rate from one place to another: a resumed stage may have no part in the peak."""
        places = [s0 + (s1 - s0) * k / 400 for k in range(401)]
        return max(self.lr(s) for s in [*places, *([self.warmup] if s0 <= self.warmup <= s1 else [])])


@dataclass(frozen=True)
class Defaults:
    """What a schedule takes from TrainingArguments where it says nothing itself."""

    learning_rate: float
    warmup: float = 0
    shape: str = "linear"
    shape_kwargs: Mapping[str, Any] = field(default_factory=dict)


def trainer_shape(
    name: str, warmup: int, total: int, kwargs: Mapping[str, Any], *, peak: float
) -> Callable[[float], float]:
    """Trainer's own schedule of that name as a function of the step, equal to what Trainer would do.

    Some shapes end at a rate, not at a share of the peak (``polynomial``, ``min_lr``), so they must know the peak.
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
    """A linear warmup from ``start`` to the curve's first value, then the curve over what is left."""

    def shape(s: float) -> float:
        if s < warmup:
            return start + (curve(0.0) - start) * s / warmup
        return curve((s - warmup) / max(total - warmup, 1))

    return shape
