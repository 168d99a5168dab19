"""Go back to an earlier, healthy state."""

from __future__ import annotations

from dataclasses import dataclass

from hf_stages.gates.actions.base import Action, check_count, check_factor
from hf_stages.gates.base import Decision


@dataclass(frozen=True)
class Rollback(Action):
    """Puts back the weights and moments of the newest healthy state that is at least ``steps`` updates old.

    The step counter, the schedule and the log go on. The stage's start is the oldest state there is.

    >>> decision = Rollback(200)("the loss is NaN")
    >>> decision.action, decision.steps_back, decision.skip_data, decision.value
    ('rollback', 200, True, 0.5)
    """

    steps: int = 200
    """How many updates old the state must be at least."""
    skip_data: bool = True
    """True: go on with the data behind those drawn since then. False: draw them again."""
    factor: float = 0.5
    """What the learning rate is multiplied by, between 0 and 1; 1 leaves it as it is."""
    attempts: int = 3
    """How often it may go back in one stage; from then on the next action is taken, after the last one ``StopRun``."""

    def __post_init__(self) -> None:
        check_count(self, "steps")
        check_count(self, "attempts")
        if self.factor != 1:
            check_factor(self, self.factor)
        if not isinstance(self.skip_data, bool):
            raise ValueError(f"Rollback: skip_data: expected true or false, got {self.skip_data!r}")

    def decide(self) -> Decision:
        rate = f"the learning rate is multiplied by {self.factor:.3g}" if self.factor != 1 else ""
        return Decision("rollback", rate, self.factor, steps_back=self.steps, skip_data=self.skip_data)
