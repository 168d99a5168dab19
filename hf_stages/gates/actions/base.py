"""What all actions of detectors have in common."""

from __future__ import annotations

from dataclasses import replace

from hf_stages.gates.base import Decision


class Action:
    """Base of all actions: a frozen dataclass that gives the decision to be taken.

    An action of your own is a subclass with ``decide()``:

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Warn(Action):
    ...     def decide(self):
    ...         return Decision("alert", "somebody should look at this")
    >>> Warn()("the loss doubled").reason
    'the loss doubled; somebody should look at this'
    """

    attempts: int | None = None
    """How often it may be taken in a stage; None sets no limit."""

    def decide(self) -> Decision:
        """Return the decision; its reason says in words what is done, or is empty where whoever does it says so."""
        raise NotImplementedError(f"{type(self).__name__} must define decide()")

    def __call__(self, finding: str) -> Decision:
        """Return the decision with what was found as its reason, and what is done behind it."""
        decision = self.decide()
        return replace(decision, reason="; ".join(filter(None, [finding, decision.reason])))


def check_factor(action: Action, factor: float) -> None:
    """Refuse a factor that would not lower the learning rate."""
    number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if not number or not 0 < factor < 1:
        raise ValueError(f"{type(action).__name__}: factor: expected a number between 0 and 1, got {factor!r}")


def check_count(action: Action, name: str) -> None:
    """Refuse a number of updates or attempts that is no whole number above 0."""
    count = getattr(action, name)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{type(action).__name__}: {name}: expected a whole number of at least 1, got {count!r}")
