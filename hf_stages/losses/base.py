"""The base of all losses, which add and scale: ``TaskLoss() + 0.1 * Other()``, ``Linear(1, 0) * Other()``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_stages.core.curves import Const, Curve, as_curve
from hf_stages.core.part import Writer

Leaf = tuple[tuple[Curve, ...], "Loss", "int | None"]
"""The weights around a loss, the loss, and the number of the ``Balanced`` that it stands in."""


class Loss:
    """The base of all losses. A loss returns its *sum* over a micro-batch; the trainer divides by the items of the
    update.

    The trainer divides once, by the items of all accumulated micro-batches on all ranks. So the gradient does not
    depend on how a batch is cut (transformers' own Trainer scales a classifier's gradient by the accumulation steps).

    A loss of your own is a frozen dataclass with ``items`` and ``__call__``:

    >>> @dataclass(frozen=True)
    ... class Confidence(Loss):
    ...     needs = frozenset({"logits"})
    ...
    ...     def items(self, batch):
    ...         return batch["labels"].numel()
    ...
    ...     def __call__(self, student, teacher, batch, t):
    ...         return student.logits.softmax(-1).amax(-1).sum()
    >>> (0.1 * Confidence()).weight
    Const(value=0.1)
    """

    needs: frozenset[str] = frozenset()
    """What the loss reads of the student: ``loss``, ``logits``, ``final``, ``hidden.3``, ``attention.3``.

    ``hf_stages.models.signals`` explains these keys.
    """
    teacher_needs: frozenset[str] = frozenset()
    """What the loss reads of the teacher, which is run no further than that."""
    uses_teacher: bool = False
    """True where the loss reads ``teacher``. The stage must then have one."""
    summed: bool = False
    """True where nothing divides the value, which is a sum by design, as a model's own loss may be."""
    task: Any = None
    """The TaskLoss inside, which is told what the model's own loss is a mean over."""
    modules: nn.Module | None = None
    """The loss's own weights (projections): trained and checkpointed with the stage, and in no saved model."""

    part_names: tuple[str, ...] = ()
    """Names of the parts, such as the layers ``2-4``, where the value is one number for each part."""
    logged_names: tuple[str, ...] = ()
    """Names of more numbers for the log. Then ``__call__`` returns a pair: the value, and these as sums over items."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def for_models(self, student: Any, teacher: Any) -> Loss:
        """Return a copy that knows these models: choose layers, set ``needs``, refuse what cannot work.

        It is called in the plan and at the stage's start. ``student`` is the transformed model, ``teacher`` a model or
        None. In the plan both may be on the meta device.
        """
        return self

    def projected_signals(self, captured: Mapping[str, Any]) -> Mapping[str, Any]:
        """Make more signals of the captured ones, within the student's forward, so that DDP sees ``modules``."""
        return {}

    def tensors_read(self, captured: Mapping[str, Any]) -> Any:
        """Return the captured tensors that the value depends on. DDP waits for gradients of all that is below them."""
        return [captured[key] for key in self.needs if key in captured]

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Count the items that the sum runs over: an int or a scalar tensor, zero for an empty micro-batch."""
        raise NotImplementedError(f"{self.name} must define items(batch)")

    def zero_is_meaningful(self, batch: Mapping[str, Any]) -> Any:
        """Tell whether a value of zero means anything. It does not where the micro-batch has no row for this loss."""
        return True

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any], t: float) -> Any:
        """Compute the sum over a micro-batch, of signals of the student and the teacher, at progress ``t``."""
        raise NotImplementedError(f"{self.name} must define __call__(student, teacher, batch, t)")

    def leaves(self, weights: tuple[Curve, ...], groups: list[Any], group: int | None) -> Iterator[Leaf]:
        """Give each loss inside with all that multiplies it. A loss that balances others adds itself to ``groups``."""
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
    """A loss with a weight, which may be a curve over the stage's progress. ``0.5 * loss`` makes one."""

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
    """Losses added up. ``one + other`` makes one."""

    losses: tuple[Loss, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "losses", tuple(self.losses))

    def leaves(self, weights: tuple[Curve, ...], groups: list[Any], group: int | None) -> Iterator[Leaf]:
        for loss in self.losses:
            yield from loss.leaves(weights, groups, group)

    def to_data(self, write: Writer) -> Any:
        return {"use": "Sum", "losses": [write(loss, "losses") for loss in self.losses]}


def adapted(loss: Any, **found: Any) -> Any:
    """Copy a frozen loss and set what it found in the models."""
    known = copy.copy(loss)
    for name, value in found.items():
        object.__setattr__(known, name, value)
    return known


def _parts(loss: Loss) -> tuple[Loss, ...]:
    return loss.losses if isinstance(loss, Sum) else (loss,)
