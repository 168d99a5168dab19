"""Losses add and scale: ``TaskLoss() + 0.1 * Other()``, ``Linear(1, 0) * Other()``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_stages.core.curves import Const, Curve, as_curve
from hf_stages.core.parts import Writer

Leaf = tuple[tuple[Curve, ...], "Loss", "int | None"]
"""A loss that is computed, the weights around it, and which ``Balanced`` it stands in."""


class Loss:
    """Base of all losses. A loss returns its *sum* over a micro-batch; the trainer divides by the items of the update.

    Dividing once, by the items of all accumulated micro-batches on all ranks, is what makes the gradient
    independent of how a batch is cut (transformers' own Trainer scales a classifier's by the accumulation steps).
    """

    needs: frozenset[str] = frozenset()
    """What the student must show (keys as in ``hf_stages.models.signals``): ``loss``, ``logits``, ``final``, ``hidden.3``, ``attention.3``."""
    teacher_needs: frozenset[str] = frozenset()
    """What the teacher must show: it is run no further than that."""
    uses_teacher: bool = False
    """True where ``teacher`` is read: the stage must then have one."""
    summed: bool = False
    """True where the value is a sum that nothing divides, as a model's own loss may be."""
    task: Any = None
    """The TaskLoss in it, which learns on a stage's first batch what the model's own loss is a mean over."""
    modules: nn.Module | None = None
    """Weights of the loss's own (projections): trained and checkpointed with the stage, no part of the saved model."""

    part_names: tuple[str, ...] = ()
    """Where the value is one number for each of several parts: what they are called, such as the layers ``2-4``."""
    logged_names: tuple[str, ...] = ()
    """Where ``__call__`` gives a pair, the value and more numbers for the log: what these are called. Each is a sum over the items."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def for_models(self, student: Any, teacher: Any) -> Loss:
        """Called at plan time and at the stage's start: choose layers, say ``needs``, refuse what cannot work.

        ``student`` is the transformed model, ``teacher`` a model or None; at plan time both may lie on the meta device.
        """
        return self

    def projected_signals(self, captured: Mapping[str, Any]) -> Mapping[str, Any]:
        """Make more signals of the student's, within its forward: where ``modules`` work, so that DDP sees them."""
        return {}

    def tensors_read(self, captured: Mapping[str, Any]) -> Any:
        """Give the captured tensors that the value depends on: under DDP all that lies below them gets a gradient."""
        return [captured[key] for key in self.needs if key in captured]

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Over how many items the sum runs: an int or a scalar tensor, zero for an empty micro-batch."""
        raise NotImplementedError(f"{self.name} must define items(batch)")

    def zero_is_meaningful(self, batch: Mapping[str, Any]) -> Any:
        """Say whether a value of zero means anything: not where the micro-batch holds no row that the loss is for."""
        return True

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any], t: float) -> Any:
        raise NotImplementedError(f"{self.name} must define __call__(student, teacher, batch, t)")

    def leaves(self, weights: tuple[Curve, ...], groups: list[Any], group: int | None) -> Iterator[Leaf]:
        """The losses in it that are computed, each with all that multiplies it; what balances losses joins ``groups``."""
        yield weights, self, group

    def __add__(self, other: Any) -> Loss:
        if not isinstance(other, Loss):
            return NotImplemented
        return Sum((*_parts(self), *_parts(other)))

    def __mul__(self, weight: Any) -> Loss:
        return Scaled(as_curve(weight), self)

    __rmul__ = __mul__


def value_and_logged(given: Any) -> tuple[Any, Any]:
    """Take apart what a loss gave: its value, and the numbers that go by its ``logged_names``, if there are some."""
    return given if isinstance(given, tuple) else (given, None)


@dataclass(frozen=True)
class Scaled(Loss):
    """A loss with a weight, which may be a curve over the stage's progress."""

    weight: Curve
    loss: Loss

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", as_curve(self.weight))

    def leaves(self, weights: tuple[Curve, ...], groups: list[Any], group: int | None) -> Iterator[Leaf]:
        yield from self.loss.leaves((*weights, self.weight), groups, group)

    def to_data(self, write: Writer) -> Any:
        weight = self.weight.value if type(self.weight) is Const else write(self.weight, "weight")
        inner = write(self.loss, "loss")
        simple = isinstance(inner, dict) and "use" in inner and "weight" not in inner and inner["use"] != "Scaled"
        if simple and "weight" not in inspect.signature(type(self.loss)).parameters:
            return {**inner, "weight": weight}
        return {"use": "Scaled", "weight": weight, "loss": inner}


@dataclass(frozen=True)
class Sum(Loss):
    """Losses added up."""

    losses: tuple[Loss, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "losses", tuple(self.losses))

    def leaves(self, weights: tuple[Curve, ...], groups: list[Any], group: int | None) -> Iterator[Leaf]:
        for loss in self.losses:
            yield from loss.leaves(weights, groups, group)

    def to_data(self, write: Writer) -> Any:
        return {"use": "Sum", "losses": [write(loss, "losses") for loss in self.losses]}


def adapted(loss: Any, **found: Any) -> Any:
    """A copy of a frozen loss that knows what it found in the models."""
    known = copy.copy(loss)
    for name, value in found.items():
        object.__setattr__(known, name, value)
    return known


def _parts(loss: Loss) -> tuple[Loss, ...]:
    return loss.losses if isinstance(loss, Sum) else (loss,)
