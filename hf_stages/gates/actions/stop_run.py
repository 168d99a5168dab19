"""Stop the run."""

from __future__ import annotations

from dataclasses import dataclass

from hf_stages.gates.actions.base import Action
from hf_stages.gates.base import Decision


@dataclass(frozen=True)
class StopRun(Action):
    """Stops the run here. It is also what follows the last action once that may be taken no more.

    >>> StopRun()("the loss is NaN").reason
    'the loss is NaN; the run stops here'
    """

    def decide(self) -> Decision:
        return Decision("stop", "the run stops here")
