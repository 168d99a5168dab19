"""Take a stage's loss apart into named terms: sums and weights are resolved, each term is adapted to the models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_stages.core.curves import Const, Curve
from hf_stages.core.short_values import describe_value
from hf_stages.losses.base import Leaf, Loss
from hf_stages.losses.objective.by_source import OnSource


@dataclass(frozen=True)
class Term:
    """One summand of a stage's loss with all that multiplies it. Its ``name`` is unique within the stage."""

    name: str
    weights: tuple[Curve, ...]
    loss: Loss
    balance: int | None = None
    """Which of the stage's ``Balanced`` groups it belongs to, in the order of ``groups_of``."""

    def weight(self, t: float) -> float:
        """Multiply all weights at progress ``t``."""
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
    for weights, leaf, group in _leaves(loss, []):
        seen[leaf.name] = count = seen.get(leaf.name, 0) + 1
        name = leaf.name if count == 1 else f"{leaf.name}_{count}"
        adapted = leaf.for_models(student, teacher) if student is not None else leaf
        terms.append(Term(name, weights or (Const(1.0),), adapted, group))
    return tuple(terms)


def terms_with_weight(terms: Sequence[Term], t: float) -> tuple[Term, ...]:
    """Return the terms that are computed at ``t``: all but those of weight zero. A single term is always computed."""
    return tuple(term for term in terms if len(terms) == 1 or term.weight(t) != 0.0)


def needs_of(terms: Iterable[Term]) -> frozenset[str]:
    """Collect what the terms need of the student. A loss that names nothing is given the model's whole outputs."""
    return frozenset[str]().union(*(term.loss.needs or {"outputs"} for term in terms))


def teacher_needs_of(terms: Iterable[Term]) -> frozenset[str]:
    """Collect what the terms need of the teacher."""
    return frozenset[str]().union(*(t.loss.teacher_needs or {"outputs"} for t in terms if t.loss.uses_teacher))


def groups_of(loss: Any) -> tuple[Any, ...]:
    """List the ``Balanced`` parts of a loss, in the order that ``Term.balance`` counts them."""
    groups: list[Any] = []
    for _ in _leaves(loss, groups) if loss is not None else ():
        pass
    return tuple(groups)


def sources_of(loss: Any) -> tuple[str, ...]:
    """List the sources that a loss by source tells apart, in the order of their numbers. One loss for all has none."""
    return tuple(sorted(loss)) if isinstance(loss, Mapping) else ()


def _leaves(loss: Any, groups: list[Any]) -> Iterator[Leaf]:
    for part in loss.values() if isinstance(loss, Mapping) else [loss]:
        if not isinstance(part, Loss):
            raise ValueError(
                f"expected a loss such as TaskLoss() or LogitKL(), got {describe_value(part)}; a loss of your own is a "
                "subclass of hf_stages.losses.Loss, and a function of outputs and labels is Trainer's compute_loss_func"
            )
    if not isinstance(loss, Mapping):
        yield from loss.leaves((), groups, None)
        return
    sources = sources_of(loss)
    for source, part in loss.items():
        for weights, leaf, group in part.leaves((), groups, None):
            yield weights, OnSource(leaf, source, sources.index(source)), group
