"""A ladder of actions: which of them is taken next, computed from the steps at which earlier ones were taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_stages.gates.actions.base import Action
from hf_stages.gates.actions.stop_run import StopRun


@dataclass(frozen=True)
class Ladder:
    """Takes one rung after the other while trouble goes on, and starts again below once it is over.

    >>> from hf_stages.gates.actions.cut_rate import CutRate
    >>> from hf_stages.gates.actions.rollback import Rollback
    >>> ladder = Ladder((CutRate(), Rollback(attempts=1)), cooldown=50)
    >>> [type(ladder.next(taken, now)).__name__ for taken, now in [([], 100), ([100], 120), ([100, 120], 130)]]
    ['CutRate', 'Rollback', 'StopRun']
    >>> type(ladder.next([100], 151)).__name__
    'CutRate'
    """

    rungs: Sequence[Action]
    """The actions from the first to the last, at least one."""
    cooldown: int
    """After this many updates without trouble the ladder starts again below."""

    def next(self, taken: Sequence[int], now: int) -> Action:
        """Return the action for trouble at step ``now``, after rungs were ``taken`` at these steps, oldest first.

        The last rung stays. A rung whose attempts are used up is passed over; behind the last one the run stops.
        """
        rung, before, used = -1, -self.cooldown - 1, [0] * len(self.rungs)
        for step in (*taken, now):
            rung = min(rung + 1, len(self.rungs) - 1) if step - before <= self.cooldown else 0
            while rung < len(used) and used[rung] >= (self.rungs[rung].attempts or float("inf")):
                rung += 1
            if rung < len(used):
                used[rung] += 1
            before = step
        return self.rungs[rung] if rung < len(used) else StopRun()
