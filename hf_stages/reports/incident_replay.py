"""What came of running a bad update again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hf_stages.reports.incidents import IncidentRow


@dataclass(frozen=True)
class ReplayedRow:
    """A row, run again alone."""

    row: IncidentRow
    loss: float
    grad_norm: float
    """The norm of its own gradient."""
    loss_without: float
    """The loss of the update without this row."""
    grad_norm_without: float
    """The norm of the update's gradient without this row."""

    def numbers(self) -> dict[str, float | str | None]:
        """Return what was measured, as JSON can hold it."""
        names = ("loss", "grad_norm", "loss_without", "grad_norm_without")
        return {name: _plain(getattr(self, name)) for name in names}


@dataclass(frozen=True)
class Replay:
    """What an update does to the weights that it was replayed with."""

    weights: str
    """Which weights these are, in words."""
    loss: float
    grad_norm: float
    rows: tuple[ReplayedRow, ...] = ()
    """The worst rows, in the incident's order."""
    loss_without: float | None = None
    """The loss without all rows that stand out; None where there are none, or no others."""
    grad_norm_without: float | None = None
    notes: tuple[str, ...] = ()
    """What differs from the training."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it: a number that JSON has no word for is text."""
        rows = [{**one.row.to_dict(), **one.numbers()} for one in self.rows]
        numbers = ("loss", "grad_norm", "loss_without", "grad_norm_without")
        told = {name: _plain(getattr(self, name)) for name in numbers}
        return {"weights": self.weights, **told, "rows": rows, "notes": list(self.notes)}


def _plain(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
