"""When a stage saves states that it may go back to, which of them is healthy, and what comes back with one.

Two kinds of gates go back. ``Forgetting`` says itself which state to keep, and goes back to that one. A detector's
``Rollback(steps)`` goes back to the newest healthy state that is at least so many updates old; for that the stage saves
one every half of ``steps``. A state is healthy where no detector found anything when it was saved, nor until the next
one was. That is read off the ledger, so a resumed run knows the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_stages.gates.base import Decision, Gate
from hf_stages.training.stage.progress import Progress
from hf_stages.training.stage.rollback_states import RollbackStates, remove_states
from hf_stages.training.stage.stage_notes import StageNotes

_TROUBLE = ("alert", "skip", "cut_lr", "rollback")


class Rollbacks:
    """Saves states as a stage goes on, and goes back to one of them.

    Args:
        states: Where they lie on the disk.
        gates: The stage's.
        progress: How far the stage is.
        notes: The stage's part of the ledger.
    """

    def __init__(self, states: RollbackStates, gates: Sequence[Gate], *, progress: Progress, notes: StageNotes) -> None:
        self.states, self.progress, self.notes = states, progress, notes
        self.keeps = any(gate.keeps for gate in gates)
        """Whether a gate may go back to the stage's start, or to another state."""
        self.distances = sorted(distances_of(gates))
        self.detectors = {type(gate).__name__ for gate in gates if hasattr(gate, "then")}
        self.last: int | None = None
        """After how many of the stage's updates a gate last asked to keep the state."""
        self.saved: tuple[int, ...] = ()
        """After how many updates the other states were saved, oldest first. The stage's start stays."""
        self.went_to: int | None = None
        """The state that a detector last went back to."""
        self.companions: dict[str, Any] = {}
        """What has a memory (``state_dict``) beside weights and moments, and goes back with them."""

    def begin(self) -> None:
        """Before the first update: save the state that can always be gone back to."""
        if self.states.trainer.args.should_save:
            remove_states(self.states.folder)
        if self.keeps:
            self.keep()

    def keep(self) -> None:
        """Keep this state as the last one that a gate found good."""
        self.last = self.progress.steps
        self._save()

    def after_update(self) -> None:
        """Save the state where one is due."""
        steps = self.progress.steps
        if any(steps % spacing(distance) == 0 for distance in self.distances):
            self._save()

    def go_back(self, decision: Decision) -> int:
        """Go back to the state that a decision means. Returns after how many updates of the stage it was saved."""
        if decision.steps_back is None:
            assert self.last is not None
            step = self.last
        else:
            step = self.newest_healthy(decision.steps_back)
        more = self.states.go_back(step)
        self.saved = tuple(one for one in self.saved if one <= step)  # those since then belong to the way that was left
        if decision.steps_back is not None:
            again, self.last, self.went_to = step == self.went_to, step, step
            for name, companion in self.companions.items():
                if name in more:
                    companion.load_state_dict(more[name])
                if again and hasattr(companion, "forget"):
                    companion.forget()  # the same trouble from the same state: what it is compared with is no measure
        return step

    def newest_healthy(self, distance: int) -> int:
        """Find the newest healthy state that is at least ``distance`` updates old, or else the stage's start."""
        known = [one for one in self.saved if one <= self.progress.steps - distance and self._is_healthy(one, distance)]
        return max(known, default=0 if self.saved or self.last is None else self.last)

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.last, "healthy": list(self.saved), "went_to": self.went_to}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.last, self.saved = state.get("kept"), tuple(state.get("healthy", ()))
        self.went_to = state.get("went_to")

    def _save(self) -> None:
        steps = self.progress.steps
        if self.distances:
            self.saved = tuple(sorted({*self._still_wanted(), steps}))
        held = {*self.saved, *(() if self.last is None else (self.last,))}
        self.states.save(steps, {name: one.state_dict() for name, one in self.companions.items()}, held)

    def _still_wanted(self) -> set[int]:
        """Find the saved states that may still be gone back to: the start, and for each distance those that are too
        young for it, with the newest healthy one that is old enough."""
        wanted = {0} & set(self.saved)
        for distance in self.distances:
            young = {one for one in self.saved if one > self.progress.steps - distance}
            wanted |= {one for one in young if one % spacing(distance) == 0} | {self.newest_healthy(distance)}
        return wanted & set(self.saved)

    def _is_healthy(self, step: int, distance: int) -> bool:
        first = self.progress.first_step + step
        return not any(
            entry.kind in _TROUBLE and entry.by in self.detectors and first <= entry.step < first + spacing(distance)
            for entry in self.notes.entries()
        )


def spacing(distance: int) -> int:
    """Say how many updates lie between states, so that one of between ``distance`` and 1.5 times that age is there.

    >>> spacing(200), spacing(5), spacing(1)
    (100, 3, 1)
    """
    return (distance + 1) // 2


def distances_of(gates: Sequence[Gate]) -> set[int]:
    """Find how many updates the actions of detectors go back."""
    decisions = [action.decide() for gate in gates for action in getattr(gate, "then", ())]
    return {one.steps_back for one in decisions if one.action == "rollback" and one.steps_back is not None}
