"""The run's append-only list of decisions: what was decided, at which step, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Entry:
    """One decision. ``kind`` is one word: ``begin``, ``end``, ``alert``, ``stop``, ``resume``, ``notice``."""

    step: int
    stage: str
    kind: str
    reason: str
    by: str = ""


@dataclass
class Ledger:
    """Decisions in the order they were taken; only ever appended to.

    >>> ledger = Ledger()
    >>> ledger.note(10, "language", "end", "eval_loss 3.1 is below 3.2", by="Below")
    >>> [e.reason for e in ledger.of("language", "end")]
    ['eval_loss 3.1 is below 3.2']
    """

    _entries: list[Entry] = field(default_factory=list)

    def note(self, step: int, stage: str, kind: str, reason: str, *, by: str = "") -> None:
        self._entries.append(Entry(step, stage, kind, reason, by))

    def of(self, stage: str | None = None, kind: str | None = None) -> list[Entry]:
        return [e for e in self._entries if stage in (None, e.stage) and kind in (None, e.kind)]

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def to_list(self) -> list[dict]:
        return [asdict(entry) for entry in self._entries]

    @classmethod
    def from_list(cls, entries: list[dict]) -> Ledger:
        return cls([Entry(**entry) for entry in entries])
