"""Learn the teacher's distribution over classes or tokens."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch

from hf_stages.core.curves import Curve, as_curve
from hf_stages.losses.base import Loss
from hf_stages.losses.divergence import Measure, divergence
from hf_stages.losses.target_logits import Targets
from hf_stages.models.outputs import check_same, outputs_of

_Direction = Literal["forward", "reverse", "jsd"]


@dataclass(frozen=True)
class LogitKL(Loss):
    """The divergence of the two softmaxes at a temperature, times temperature**2 in every direction.

    ``forward`` is KL(teacher||student) (arXiv 1503.02531), ``reverse`` is KL(student||teacher), and ``jsd`` is the
    generalized Jensen-Shannon divergence beta KL(teacher||M) + (1 - beta) KL(student||M) with
    M = beta teacher + (1 - beta) student (arXiv 2306.13649). The value is summed over classes. For multi-label models
    each label is a distribution of its own, and labels are summed. TRL leaves temperature**2 out: divide a weight from
    there by it.

    >>> LogitKL(temperature=2, direction="reverse")
    LogitKL(temperature=2, direction='reverse', beta=0.5, on='labels')
    """

    temperature: float | Curve = 1.0
    """The number that logits are divided by; a curve is taken, too."""
    direction: _Direction = "forward"
    """``forward``: KL(teacher || student); ``reverse``: KL(student || teacher); ``jsd``: between both, by ``beta``."""
    beta: float = 0.5
    """The teacher's share in ``jsd``."""
    on: Literal["labels", "tokens"] = "labels"
    """``labels``: positions with a label (all real tokens where a batch has none). ``tokens``: all real tokens."""

    uses_teacher = True
    needs = frozenset({"final"})
    teacher_needs = frozenset({"final"})
    _targets: ClassVar[Targets] = Targets()
    _problem_type: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if self.direction not in get_args(_Direction):
            raise ValueError(
                f"LogitKL: direction: expected one of {', '.join(get_args(_Direction))}, got {self.direction!r}"
            )
        if self.on not in ("labels", "tokens"):
            raise ValueError(f"LogitKL: on: expected 'labels' or 'tokens', got {self.on!r}")
        if isinstance(self.beta, bool) or not isinstance(self.beta, int | float) or not 0 < self.beta < 1:
            raise ValueError(
                f"LogitKL: beta: expected a number between 0 and 1, neither included, got {self.beta!r}; the ends are "
                "direction='forward' and 'reverse'"
            )
        if isinstance(self.temperature, str):
            object.__setattr__(self, "temperature", as_curve(self.temperature))
        for step in range(101):
            self._temperature(step / 100)

    def for_models(self, student: Any, teacher: Any) -> LogitKL:
        mine = outputs_of(student, "LogitKL")
        regression = mine.problem_type == "regression" or (
            mine.classes == 1 and mine.problem_type != "multi_label_classification"
        )
        if regression and mine.source == "config.num_labels":
            raise ValueError(
                f"LogitKL: the student ({mine.model}) is a regression head ({mine.classes} output(s)): a softmax over "
                "one logit is always 1, and the loss always zero; use LogitMSE"
            )
        if teacher is not None:
            check_same(mine, outputs_of(teacher, "LogitKL"), "LogitKL")
        adapted = copy.copy(self)
        object.__setattr__(adapted, "_targets", Targets(mine.kind, self.on, mine.pad))
        object.__setattr__(adapted, "_problem_type", mine.problem_type)
        return adapted

    def items(self, batch: Mapping[str, Any]) -> Any:
        return self._targets.items(batch)

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any], t: float) -> torch.Tensor:
        final = student.final
        shape = (final if torch.is_tensor(final) else final.hidden).shape[:-1]
        measure = Measure(self.direction, self._temperature(t), self.beta, self._many(batch, shape))
        return divergence(final, teacher.final, self._targets.index(batch, shape), measure)

    def _temperature(self, t: float) -> float:
        value = as_curve(self.temperature)(t)
        if not (value > 0 and math.isfinite(value)):
            at = f" at t={t:.4g}" if isinstance(self.temperature, Curve) else ""
            raise ValueError(f"LogitKL: temperature: expected more than 0, got {value}{at}")
        return value

    def _many(self, batch: Mapping[str, Any], shape: torch.Size) -> bool:
        """Tell whether rows have several labels: by the config, else by float labels, as transformers does."""
        if self._problem_type is not None:
            return self._problem_type == "multi_label_classification"
        labels: Any = batch.get("labels")
        return len(shape) == 1 and torch.is_tensor(labels) and labels.is_floating_point() and labels.dim() == 2
