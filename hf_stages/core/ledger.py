"""The list of a run's decisions: what was decided, at which step, and why. Entries are only ever added."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Entry:
    """One decision of a run."""

    step: int
    """Updates of the whole run before the decision."""
    stage: str
    """The stage's name."""
    kind: str
    """``begin``, ``end``, ``alert``, ``stop``, ``resume``, ``notice``, ``cut_lr``, ``rollback``, ``replay``, ``skip``
    (of an update) or ``incident`` (rows of bad updates were written down)."""
    reason: str
    """Why, in a sentence."""
    by: str = ""
    """The part that decided, such as the gate's class."""
    value: float | None = None
    """The factor of the learning rate from here on; for ``replay``, the share of the examples from earlier data."""
    again_from: int | None = None
    """For ``rollback``: after how many updates of the stage its data come again from here on; None: they go on."""


@dataclass
class Ledger:
    """The entries in the order in which they were added.

    >>> ledger = Ledger()
    >>> ledger.note(10, "language", "end", "eval_loss 3.1 is below 3.2", by="Below")
    >>> [e.reason for e in ledger.select("language", "end")]
    ['eval_loss 3.1 is below 3.2']
    """

    _entries: list[Entry] = field(default_factory=list)
    listener: Callable[[Entry], None] | None = field(default=None, repr=False, compare=False)
    """Hears of each new entry, once it is added."""

    def note(
        self,
        step: int,
        stage: str,
        kind: str,
        reason: str,
        *,
        by: str = "",
        value: float | None = None,
        again_from: int | None = None,
    ) -> None:
        """Add an entry."""
        self._entries.append(Entry(step, stage, kind, reason, by, value, again_from))
        if self.listener is not None:
            self.listener(self._entries[-1])

    def followed_by(self, other: Ledger) -> Ledger:
        """Return another ledger, which takes this one's place and its listener."""
        other.listener = self.listener
        return other

    def select(self, stage: str | None = None, kind: str | None = None) -> list[Entry]:
        """Return the entries of one stage, of one kind, or of both; None takes all."""
        return [e for e in self._entries if stage in (None, e.stage) and kind in (None, e.kind)]

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def to_list(self) -> list[dict]:
        """Return the entries as plain data, for ``run.json``."""
        often_none = ("value", "again_from")
        return [
            {k: v for k, v in asdict(entry).items() if k not in often_none or v is not None} for entry in self._entries
        ]

    def lr_factor(self, stages: Collection[str], step: int) -> float:
        """Return the factor of these stages' learning rates after ``step`` updates of the run.

        >>> ledger = Ledger()
        >>> ledger.note(10, "code", "cut_lr", "prose rose", value=0.5)
        >>> ledger.lr_factor(["code"], 9), ledger.lr_factor(["code"], 10)
        (1.0, 0.5)
        """
        cuts = (e for e in self._entries if e.kind != "replay" and e.stage in stages and e.step <= step)
        return math.prod((e.value for e in cuts if e.value is not None), start=1.0)

    @classmethod
    def from_list(cls, entries: list[dict]) -> Ledger:
        """Read back what ``to_list`` returned."""
        return cls([Entry(**entry) for entry in entries])
