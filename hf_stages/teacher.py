"""A live teacher: a model that is run without gradient beside the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_stages.losses._signals import Signals


class Teacher:
    """Runs a model in evaluation mode; it is never trained, saved or wrapped.

    Labels are withheld: a teacher that computes its own loss wastes time and may refuse labels of another shape.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model.to(device).eval().requires_grad_(False)

    def __call__(self, batch: Mapping[str, Any]) -> Signals:
        inputs = {key: value for key, value in batch.items() if "label" not in key}
        with torch.no_grad():
            return Signals(self.model(**inputs))
