"""A loss on the rows of one source: ``Stage(loss={"code": TaskLoss() + LogitKL(), "text": 0.5 * TaskLoss()})``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_stages.core.batch import SOURCE
from hf_stages.losses.base import Loss, adapted
from hf_stages.losses.task_loss import TaskLoss
from hf_stages.models.outputs import outputs_of
from hf_stages.models.signals import Signals


@dataclass(frozen=True)
class OnSource(Loss):
    """The inner loss on the rows of one source, divided by the items of all sources.

    With the same loss for every source, the sum is that loss on the whole batch. So the shares of a mixture keep their
    meaning, and the mapping says how hard each source pulls.

    Args:
        inner: The loss to compute.
        source: The name of the source.
        number: The source's number in the batch's ``source`` column.
    """

    inner: Loss
    source: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.inner.name}_{self.source}"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return self.inner.needs

    @property
    def teacher_needs(self) -> frozenset[str]:  # type: ignore[override]
        return self.inner.teacher_needs

    @property
    def uses_teacher(self) -> bool:  # type: ignore[override]
        return self.inner.uses_teacher

    @property
    def task(self) -> Any:
        return self.inner.task

    @property
    def part_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.part_names

    @property
    def logged_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.logged_names

    @property
    def modules(self) -> Any:  # type: ignore[override]
        return self.inner.modules

    def projected_signals(self, captured: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.inner.projected_signals(captured)

    def tensors_read(self, captured: Mapping[str, Any]) -> Any:
        return self.inner.tensors_read(captured)

    def for_models(self, student: Any, teacher: Any) -> OnSource:
        inner = self.inner.for_models(student, teacher)
        if isinstance(inner, TaskLoss):
            about = outputs_of(student, "TaskLoss")
            inner = adapted(_TaskOnRows(inner), kind=about.kind, problem=about.problem_type, classes=about.classes)
        elif "loss" in inner.needs:
            raise ValueError(f"{inner.name}: the model's own loss cannot be split by source; use TaskLoss")
        return dataclasses.replace(self, inner=inner)

    def items(self, batch: Mapping[str, Any]) -> Any:
        return self.inner.items(batch)

    def mean_of_all(self, student: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        """Compute TaskLoss as it is computed here, over the rows of every source."""
        return self.inner(student, None, batch, 0.0) / self.inner.items(batch)

    def zero_is_meaningful(self, batch: Mapping[str, Any]) -> Any:
        return batch[SOURCE].eq(self.number).any()

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any], t: float) -> torch.Tensor:
        if SOURCE not in batch:
            raise ValueError(
                f"{self.name}: the batch does not say where its rows come from; give the dataset a column {SOURCE!r}"
            )
        total = batch[SOURCE].shape[0]
        rows = batch[SOURCE].eq(self.number).nonzero().squeeze(-1)
        few = {key: _rows(value, rows, total) for key, value in batch.items()}
        value = self.inner(signals_of_rows(student, rows, total), signals_of_rows(teacher, rows, total), few, t)
        if isinstance(self.inner, _TaskOnRows) and self.inner.adds:
            value = value + self.inner.added(student, batch) * self.inner.items(few)
        return value


@dataclass(frozen=True)
class _TaskOnRows(Loss):
    """TaskLoss computed from the logits, because a model reports one mean over all rows.

    What a model adds to its mean (a router's loss) is shared among the sources by their items.
    """

    whole: TaskLoss
    problem = kind = classes = None
    name = "TaskLoss"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"logits", "loss"} if self.adds else {"logits"})

    @property
    def task(self) -> TaskLoss:
        return self.whole

    @property
    def adds(self) -> bool:
        return self.whole.reduction is not None and self.whole.reduction.adds

    def added(self, student: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        """Compute what the model's own loss adds to the mean over its targets (a router's loss)."""
        items = self.items(batch)
        own = self(student, None, batch, 0.0)
        return own * 0.0 if float(items) == 0 else student.loss - own / items

    def items(self, batch: Mapping[str, Any]) -> Any:
        return self.whole.items(batch)

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any], t: float) -> torch.Tensor:
        logits, labels = student.logits.float(), batch["labels"]
        if self.whole.shifts and batch.get("shift_labels") is not None:
            labels = batch["shift_labels"]
        elif self.whole.shifts:
            logits, labels = logits[:, :-1], labels[:, 1:]
        functions = torch.nn.functional
        if self.problem == "regression" or (self.problem is None and self.kind == "rows" and self.classes == 1):
            return functions.mse_loss(logits.reshape(labels.shape), labels.float(), reduction="sum")
        if labels.is_floating_point():
            return functions.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        flat = logits.reshape(-1, logits.shape[-1])
        return functions.cross_entropy(flat, labels.reshape(-1), ignore_index=-100, reduction="sum")


def signals_of_rows(signals: Signals | None, rows: torch.Tensor, total: int) -> Signals | None:
    """Choose rows of a batch of ``total`` rows in everything that a model left for the losses."""
    if signals is None:
        return None
    outputs = signals.outputs
    if isinstance(outputs, Mapping):
        outputs = {key: _rows(value, rows, total) for key, value in outputs.items()}
    elif isinstance(outputs, tuple):
        outputs = tuple(_rows(value, rows, total) for value in outputs)
    captured = {key: _rows(value, rows, total, inside=True) for key, value in signals.captured.items()}
    return Signals(outputs, None, captured)


def _rows(value: Any, rows: torch.Tensor, total: int, inside: bool = False) -> Any:
    """Choose rows of a value that has one for each example; ``inside`` a model it may have several (choices)."""
    if torch.is_tensor(value):
        if not value.dim() or value.shape[0] == total:
            return value[rows] if value.dim() else value
        if not inside or value.shape[0] in (0, 1):  # a mask that all rows share
            return value
        if value.shape[0] % total:
            raise ValueError(
                f"the model runs {value.shape[0]} rows for {total} examples (images of which one has more than "
                "another), so none is of one source; give all sources one loss"
            )
        return value.unflatten(0, (total, -1))[rows].flatten(0, 1)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return dataclasses.replace(
            value, **{k: _rows(v, rows, total, inside) for k, v in parts.items() if torch.is_tensor(v)}
        )
    return value
