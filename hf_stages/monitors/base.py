"""What a monitor is given and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Monitor:
    """Base of all monitors. A monitor is called at every training log and returns numbers to log with the loss.

    ``view`` holds ``model`` (as it trains), ``step`` (updates done in the stage), ``t`` (progress from 0 to 1),
    ``tokens`` and ``teacher`` (which gives the stage's losses their signals, or None). A monitor that remembers
    something defines ``state_dict`` and ``load_state_dict``, and a resumed run continues with it. Any callable of one
    argument works; this base class only documents what it gets.

    >>> class Norm(Monitor):
    ...     def __call__(self, view):
    ...         return {"weights": float(sum(p.detach().square().sum() for p in view["model"].parameters())) ** 0.5}
    >>> import torch
    >>> Norm()({"model": torch.nn.Linear(1, 1, bias=False).requires_grad_(False).apply(lambda m: m.weight.fill_(2.0))})
    {'weights': 2.0}
    """

    def __call__(self, view: Mapping[str, Any]) -> Mapping[str, float]:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(view)")
