"""How an update was judged before the optimizer's step."""

from __future__ import annotations

import math
from dataclasses import dataclass

WATCHED = ("loss", "grad_norm")
"""What an update is judged by: its loss over all ranks, and the norm of its gradient before clipping."""


@dataclass(frozen=True)
class JudgedUpdate:
    """How an update was judged after its backward pass, before the optimizer's step.

    >>> JudgedUpdate(True, {"loss": 9.0, "grad_norm": 1.0}, {"loss": 4.0, "grad_norm": 2.0}).text
    'loss 9 is above 4'
    >>> JudgedUpdate(True, {"loss": 3.0, "grad_norm": float("nan")}, {"loss": 4.0, "grad_norm": 2.0}).text
    'grad_norm is nan'
    """

    is_bad: bool
    """Whether it is a spike, or not finite where that counts."""
    values: dict[str, float]
    """Its loss and its gradient norm."""
    limits: dict[str, float]
    """What each of them must not exceed; infinite while too few updates are known, or where it is not watched."""
    was_skipped: bool = True
    """Whether the optimizer's step was left out. If not, the weights have taken it."""
    typical: float | None = None
    """The mean loss of the updates before it that were no spikes; None where there were none."""

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, self.values.values()))

    @property
    def text(self) -> str:
        """What is wrong with it, in words."""
        found = []
        for name, value in self.values.items():
            if not math.isfinite(value):
                found.append(f"{name} is {value}")
            elif value > self.limits[name]:
                found.append(f"{name} {value:.4g} is above {self.limits[name]:.4g}")
        return ", ".join(found)
