"""What the transforms that know of a recurrent core share: checks of numbers, and refusals."""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_stages.core.curves import Const, Curve, as_curve
from hf_stages.core.placed_errors import place_errors
from hf_stages.layers.recurrent import find_recurrence


def as_mean_depth(value: Any, *, where: str) -> float | Curve:
    """Return a mean depth as a number or a curve that is never below 0."""
    with place_errors(f"{where}: mean_depth", ValueError, TypeError):
        mean = as_curve(value)
    if not all(mean(i / 16) >= 0 for i in range(17)):
        raise ValueError(f"{where}: mean_depth: expected 0 or more, got {value!r}")
    return mean.value if isinstance(mean, Const) else mean


def mean_depth_at(value: float | Curve, t: float) -> float:
    return as_curve(value)(t)


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected a whole number, {least} or more, got {value!r}")


def refuse_recurrence(model: nn.Module, *, where: str) -> None:
    """Refuse a model whose blocks are no longer one for each layer of its config."""
    if find_recurrence(model) is not None:
        raise ValueError(
            f"{where}: {type(model).__name__} has a recurrent core, which its config's numbers do not describe; put "
            f"{where} before MakeRecurrent"
        )
