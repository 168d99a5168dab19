"""What is told: one decision of a run's gates."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from hf_stages.core.ledger import Entry

TOLD = ("alert", "skip", "cut_lr", "rollback", "replay", "stop", "incident")
"""Kinds of ledger entries that are told; ``end`` is as well, where a gate decided it."""
_MILD, _GRAVE = ("incident", "replay"), ("rollback", "stop")


@dataclass(frozen=True)
class Alert:
    """One decision of a run's gates, as ``notify`` hands it on.

    >>> alert = Alert("out", "language", 300, "rollback", "OnSpike", "loss 9 is above 4", 0.5)
    >>> print(alert.title)
    rollback in stage language at step 300 (OnSpike)
    >>> alert.level
    'error'
    """

    run: str
    """The name of the run's folder."""
    stage: str
    """The stage's name."""
    step: int
    """Updates of the whole run before the decision."""
    kind: str
    """``alert``, ``skip``, ``cut_lr``, ``rollback``, ``replay``, ``end``, ``stop`` or ``incident``."""
    by: str
    """The gate's class."""
    reason: str
    """What was found, by which numbers, what is done about it, and what to try."""
    value: float | None = None
    """For ``cut_lr`` and ``rollback``, what the learning rate is multiplied by."""

    @classmethod
    def of(cls, entry: Entry, run: str) -> Alert | None:
        """Make an alert of an entry of the ledger; None where the entry is no news."""
        if entry.kind not in TOLD and not (entry.kind == "end" and entry.by not in ("until", "callback", "")):
            return None
        return cls(run, entry.stage, entry.step, entry.kind, entry.by, entry.reason, entry.value)

    @property
    def title(self) -> str:
        """The decision in a few words."""
        by = f" ({self.by})" if self.by else ""
        return f"{self.kind.replace('_', ' ')} in stage {self.stage} at step {self.step}{by}"

    @property
    def text(self) -> str:
        """All of it in words, for a message."""
        return f"{self.run}: {self.title}: {self.reason}"

    @property
    def level(self) -> Literal["info", "warn", "error"]:
        return "error" if self.kind in _GRAVE else "info" if self.kind in _MILD else "warn"

    def as_dict(self) -> dict[str, Any]:
        """Return its fields and its level as plain data."""
        return {**asdict(self), "level": self.level}


class Notifier:
    """Base of all that can be notified. A function of one argument, the ``Alert``, serves as well.

    >>> class Print(Notifier):
    ...     def __call__(self, alert):
    ...         print(alert.title)
    >>> Print()(Alert("out", "language", 300, "stop", "NonFinite", "the loss is NaN"))
    stop in stage language at step 300 (NonFinite)
    """

    def check(self) -> None:
        """Raise ValueError where nothing could be delivered. Asked as the run begins."""

    def __call__(self, alert: Alert) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(alert)")
