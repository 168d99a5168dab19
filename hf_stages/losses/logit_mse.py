"""Learn the teacher's logits themselves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from hf_stages.losses.base import Loss
from hf_stages.losses.divergence import Measure, divergence
from hf_stages.losses.target_logits import Targets
from hf_stages.models.outputs import check_same, outputs_of


@dataclass(frozen=True)
class LogitMSE(Loss):
    """The squared difference of the logits: the mean over the classes, summed over rows or positions.

    It suits regression heads, which give no distribution. It is also the limit of ``LogitKL`` at high temperature
    (arXiv
    1503.02531).

    >>> LogitMSE()
    LogitMSE(on='labels')
    """

    on: Literal["labels", "tokens"] = "labels"
    """``labels``: positions with a label (all real tokens where a batch has none). ``tokens``: all real tokens."""

    uses_teacher = True
    needs = frozenset({"final"})
    teacher_needs = frozenset({"final"})
    _targets: ClassVar[Targets] = Targets()

    def __post_init__(self) -> None:
        if self.on not in ("labels", "tokens"):
            raise ValueError(f"LogitMSE: on: expected 'labels' or 'tokens', got {self.on!r}")

    def for_models(self, student: Any, teacher: Any) -> LogitMSE:
        mine = outputs_of(student, "LogitMSE")
        if teacher is not None:
            check_same(mine, outputs_of(teacher, "LogitMSE"), "LogitMSE")
        adapted = copy.copy(self)
        object.__setattr__(adapted, "_targets", Targets(mine.kind, self.on, mine.pad))
        return adapted

    def items(self, batch: Mapping[str, Any]) -> Any:
        return self._targets.items(batch)

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any], t: float) -> torch.Tensor:
        final = student.final
        shape = (final if torch.is_tensor(final) else final.hidden).shape[:-1]
        return divergence(final, teacher.final, self._targets.index(batch, shape), Measure("mse"))
