"""Lower the learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from hf_stages.gates.actions.base import Action, check_factor
from hf_stages.gates.base import Decision


@dataclass(frozen=True)
class CutRate(Action):
    """Multiplies the learning rate by ``factor`` from here to the end of the stage.

    >>> CutRate(0.5)("grad_norm rose").reason
    'grad_norm rose; the learning rate is multiplied by 0.5'
    """

    factor: float = 0.5
    """What the rate is multiplied by, between 0 and 1."""

    def __post_init__(self) -> None:
        check_factor(self, self.factor)

    def decide(self) -> Decision:
        return Decision("cut_lr", f"the learning rate is multiplied by {self.factor:.3g}", self.factor)
