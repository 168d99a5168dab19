"""The micro-batches of a stage's newest updates, held until it is known whether an update was bad."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KeptUpdate:
    """What one update trained on, on this rank."""

    number: int
    """Its number in the stage, from 1."""
    epoch: int
    done: int
    """Updates of the epoch before it."""
    t: float
    """The progress of the stage when it began."""
    batches: tuple[Mapping[str, Any], ...]
    """Its micro-batches, as the collator made them. The tensors are not copied."""


class KeptUpdates:
    """Holds the newest updates, and forgets the others.

    Args:
        most: How many are held.
    """

    def __init__(self, most: int) -> None:
        self._held: deque[KeptUpdate] = deque(maxlen=most)

    def keep(self, number: int, epoch: int, done: int, t: float, batches: Sequence[Any]) -> None:
        """Hold an update that is about to be made."""
        held = tuple(dict(batch) for batch in batches if isinstance(batch, Mapping))
        if self._held and self._held[-1].number == number:  # it was taken anew, after a decision changed the data
            self._held.pop()
        self._held.append(KeptUpdate(number, epoch, done, t, held))

    def find(self, number: int) -> KeptUpdate | None:
        """Return the update of this number; None where it is not held."""
        return next((one for one in self._held if one.number == number), None)
