"""Losses add and scale: ``TaskLoss() + 0.1 * Other()``, ``Linear(1, 0) * Other()``."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_stages.core.curves import Const, Curve, as_curve


class Loss:
    """Base of all losses. A loss returns its *sum* over a micro-batch; the trainer divides by the items of the update.

    Dividing once, by the items of all accumulated micro-batches on all ranks, is what makes the gradient
    independent of how a batch is cut (transformers' own Trainer scales a classifier's by the accumulation steps).
    """

    needs: frozenset[str] = frozenset()
    """What the student must show (keys as in ``_signals``): ``loss``, ``logits``, ``final``, ``hidden.3``, ``attention.3``."""
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

    parts: tuple[str, ...] = ()
    """Where the value is one number for each of several parts: what they are called, such as the layers ``2-4``."""
    tells: tuple[str, ...] = ()
    """Where ``__call__`` gives a pair, the value and more numbers for the log: what these are called. Each is a sum over the items."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def for_models(self, student: Any, teacher: Any) -> Loss:
        """Called at plan time and at the stage's start: choose layers, say ``needs``, refuse what cannot work.

        ``student`` is the transformed model, ``teacher`` a model or None; at plan time both may lie on the meta device.
        """
        return self

    def inside(self, captured: Mapping[str, Any]) -> Mapping[str, Any]:
        """More signals, made from the student's within its forward: where ``modules`` work, so that DDP sees them."""
        return {}

    def used(self, captured: Mapping[str, Any]) -> Any:
        """Those of the captured tensors that the value depends on: under DDP all that lies below them gets a gradient."""
        return [captured[key] for key in self.needs if key in captured]

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Over how many items the sum runs: an int or a scalar tensor, zero for an empty micro-batch."""
        raise NotImplementedError(f"{self.name} must define items(batch)")

    def speaks(self, batch: Mapping[str, Any]) -> Any:
        """Whether a value of zero says anything: not where the micro-batch holds no row that the loss is for."""
        return True

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any], t: float) -> Any:
        raise NotImplementedError(f"{self.name} must define __call__(student, teacher, batch, t)")

    def __add__(self, other: Any) -> Loss:
        if not isinstance(other, Loss):
            return NotImplemented
        return Sum((*_parts(self), *_parts(other)))

    def __mul__(self, weight: Any) -> Loss:
        return Scaled(as_curve(weight), self)

    __rmul__ = __mul__


def value_and_told(given: Any) -> tuple[Any, Any]:
    """What a loss gave: its value, and the numbers that it ``tells``, if there are some."""
    return given if isinstance(given, tuple) else (given, None)


@dataclass(frozen=True)
class Scaled(Loss):
    """A loss with a weight, which may be a curve over the stage's progress."""

    weight: Curve
    loss: Loss

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", as_curve(self.weight))


@dataclass(frozen=True)
class Sum(Loss):
    """Losses added up."""

    losses: tuple[Loss, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "losses", tuple(self.losses))


@dataclass(frozen=True)
class Term:
    """One summand with everything that multiplies it; ``name`` is unique within the stage."""

    name: str
    weights: tuple[Curve, ...]
    loss: Loss
    balance: int | None = None
    """Which of the stage's ``Balanced`` groups it belongs to, in the order of ``groups_of``."""

    def weight(self, t: float) -> float:
        product = 1.0
        for curve in self.weights:
            product *= curve(t)
        return product


def terms_of(loss: Loss | Mapping[str, Loss], student: Any = None, teacher: Any = None) -> tuple[Term, ...]:
    """Flatten sums and weights into named terms, each adapted to the models where they are given.

    >>> from hf_stages.losses import TaskLoss
    >>> [(t.name, t.weight(0)) for t in terms_of(2 * (TaskLoss() + 0.5 * TaskLoss()))]
    [('TaskLoss', 2.0), ('TaskLoss_2', 1.0)]
    """
    seen: dict[str, int] = {}
    terms = []
    for weights, leaf, group in _leaves(loss, (), []):
        seen[leaf.name] = count = seen.get(leaf.name, 0) + 1
        name = leaf.name if count == 1 else f"{leaf.name}_{count}"
        adapted = leaf.for_models(student, teacher) if student is not None else leaf
        terms.append(Term(name, weights or (Const(1.0),), adapted, group))
    return tuple(terms)


def weighted(terms: Sequence[Term], t: float) -> tuple[Term, ...]:
    """Those that are computed at ``t``: a term without weight is not, unless it is all there is."""
    return tuple(term for term in terms if len(terms) == 1 or term.weight(t) != 0.0)


def adapted(loss: Any, **found: Any) -> Any:
    """A copy of a frozen loss that knows what it found in the models."""
    known = copy.copy(loss)
    for name, value in found.items():
        object.__setattr__(known, name, value)
    return known


def groups_of(loss: Any) -> tuple[Any, ...]:
    """The ``Balanced`` parts of a loss, in the order that ``Term.balance`` counts them."""
    groups: list[Any] = []
    for _ in _leaves(loss, (), groups) if loss is not None else ():
        pass
    return tuple(groups)


def _leaves(
    loss: Any, weights: tuple[Curve, ...], groups: list[Any], group: int | None = None
) -> Iterator[tuple[tuple[Curve, ...], Loss, int | None]]:
    from hf_stages.losses.balanced import Balanced  # it is made of what stands here

    if isinstance(loss, Mapping):
        yield from _by_source(loss, weights, groups, group)
    elif isinstance(loss, Sum):
        for part in loss.losses:
            yield from _leaves(part, weights, groups, group)
    elif isinstance(loss, Scaled):
        yield from _leaves(loss.loss, (*weights, loss.weight), groups, group)
    elif isinstance(loss, Balanced):
        groups.append(loss)  # Balanced refuses another inside itself
        yield from _leaves(loss.loss, weights, groups, len(groups) - 1)
    else:
        yield weights, loss, group


def _by_source(
    losses: Mapping[str, Loss], weights: tuple[Curve, ...], groups: list[Any], group: int | None
) -> Iterator[tuple[tuple[Curve, ...], Loss, int | None]]:
    from hf_stages.losses.objective.by_source import OnSource

    sources = sources_of(losses)
    for source, loss in losses.items():
        for scales, leaf, own in _leaves(loss, weights, groups, group):
            yield scales, OnSource(leaf, source, sources.index(source)), own


def sources_of(loss: Any) -> tuple[str, ...]:
    """The sources that a loss by source tells apart, in the order of their numbers; none where it is one loss for all."""
    return tuple(sorted(loss)) if isinstance(loss, Mapping) else ()


def _parts(loss: Loss) -> tuple[Loss, ...]:
    return loss.losses if isinstance(loss, Sum) else (loss,)
