"""End the stage."""

from __future__ import annotations

from dataclasses import dataclass

from hf_stages.gates.actions.base import Action
from hf_stages.gates.base import Decision


@dataclass(frozen=True)
class EndStage(Action):
    """Ends the stage here; the run goes on with the next one.

    >>> EndStage()("deep recurrence is worse than shallow").reason
    'deep recurrence is worse than shallow; the stage ends here'
    """

    def decide(self) -> Decision:
        return Decision("end", "the stage ends here")
