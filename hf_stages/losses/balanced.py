"""Balance terms so that they pull equally hard, whatever their units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hf_stages.core.curves import Curve
from hf_stages.losses.base import Leaf, Loss

_BY = ("gradient", "loss")


@dataclass(frozen=True)
class Balanced(Loss):
    """Scales each term inside until the norm of its gradient equals that of the first term, the reference.

    A mean square over hidden states and a divergence over a vocabulary differ by orders of magnitude, and their ratio
    changes while training. So a weight that suits one model makes a term too weak or too strong in another. Norms are
    running means over updates (the idea of GradNorm, https://arxiv.org/abs/1711.02257, without its learned weights).
    Weights, also curves, multiply afterwards: ``Balanced(TaskLoss() + 0.5 * Other())`` lets the second pull half as
    hard.

    >>> from hf_stages.losses import TaskLoss
    >>> from hf_stages.losses.objective.terms import terms_of
    >>> [term.balance for term in terms_of(Balanced(TaskLoss() + 2 * TaskLoss()) + TaskLoss())]
    [0, 0, None]
    """

    loss: Loss
    """A sum of losses, given as a list."""
    by: str = "gradient"
    """``"gradient"``: by the gradient's norm, for one more backward pass per term. ``"loss"``: by the value, free."""
    momentum: float = 0.99
    """The momentum of the running mean: about ``1 / (1 - momentum)`` measurements count."""
    every: int = 1
    """How many updates lie between two measurements."""
    limit: float = 100.0
    """The largest scale. A term that is nearly met, as in self-distillation, would else amplify noise."""

    def __post_init__(self) -> None:
        if not isinstance(self.loss, Loss):
            raise ValueError(f"Balanced: loss: expected losses added up, got {self.loss!r}")
        others: list[Any] = []
        losses = [loss for _, loss, _ in self.loss.leaves((), others, None)]
        if others:
            raise ValueError(
                "Balanced: loss: expected plain losses, got another Balanced inside; one is enough for all"
            )
        if len(losses) < 2:
            raise ValueError(
                f"Balanced: loss: expected two terms or more, got {losses[0].name if losses else 'none'} alone, "
                "which has nothing to be balanced with"
            )
        if self.by not in _BY:
            raise ValueError(f"Balanced: by: expected one of {', '.join(_BY)}, got {self.by!r}")
        if isinstance(self.momentum, bool) or not isinstance(self.momentum, int | float) or not 0 <= self.momentum < 1:
            raise ValueError(f"Balanced: momentum: expected a number from 0 to below 1, got {self.momentum!r}")
        if not self.limit >= 1:
            raise ValueError(f"Balanced: limit: expected at least 1, got {self.limit!r}")
        if not isinstance(self.every, int) or isinstance(self.every, bool) or self.every < 1:
            raise ValueError(f"Balanced: every: expected a whole number, at least 1, got {self.every!r}")

    def leaves(self, weights: tuple[Curve, ...], groups: list[Any], group: int | None) -> Iterator[Leaf]:
        groups.append(self)
        yield from self.loss.leaves(weights, groups, len(groups) - 1)
