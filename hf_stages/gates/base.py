"""What a gate reads and what it may answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from typing import Any, Literal

from hf_stages.core.ledger import Entry


@dataclass(frozen=True)
class History:
    """The stage so far. ``logs`` are the stage's own entries of ``state.log_history``, oldest first."""

    step: int
    """Updates done in this stage."""
    tokens: int = 0
    seconds: float = 0.0
    logs: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    before: Mapping[str, float] = field(default_factory=dict)
    """What evaluation said where the stage began: its parent's last metrics, or those of the model it started from."""
    earlier: Sequence[str] = ()
    """Names of evaluation sets that stages before this one trained on."""
    entries: Sequence[Entry] = ()
    """What the ledger holds of this stage."""

    def values(self, metric: str) -> list[float]:
        return [log[metric] for log in self.logs if metric in log]


@dataclass(frozen=True)
class Decision:
    """``alert`` writes the reason to the ledger, ``end`` ends the stage, ``stop`` ends the run before the next stage.

    ``cut_lr`` multiplies the learning rate by ``value`` from here on. ``keep`` keeps this state, ``rollback`` goes back to the last one
    kept and then on at ``value`` times the rate, or ends the stage where that is None. ``replay`` takes the share ``value`` of the
    examples from earlier data from here on.
    """

    action: Literal["alert", "end", "stop", "cut_lr", "keep", "rollback", "replay"]
    reason: str
    value: float | None = None


class Gate:
    """Base of all gates: a frozen dataclass, asked after every update (``on = "step"``), after new log entries
    (``"log"``), after an evaluation of all sets (``"evaluation"``) or once at the stage's end (``"end"``)."""

    on: Literal["step", "log", "evaluation", "end"] = "log"
    reads_clock: bool = False
    """True: the answer depends on the wall clock, so a resumed run may differ from an uncut one."""

    def __post_init__(self) -> None:
        """Numbers are numbers: a limit that is NaN would never be reached, and no word would say so."""
        own: tuple[Field[Any], ...] = fields(self) if is_dataclass(self) else ()
        for field_ in own:
            kinds = [kind.strip() for kind in str(getattr(field_.type, "__name__", field_.type)).split("|")]
            if not {"int", "float"} & set(kinds) or set(kinds) - {"int", "float", "None"}:
                continue
            value, whole = getattr(self, field_.name), "float" not in kinds
            if value is None and "None" in kinds:
                continue
            number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
            if not number or value != value:
                expected = "a whole number" if whole else "a number"
                raise ValueError(f"{type(self).__name__}: {field_.name}: expected {expected}, got {value!r}")

    def at_end(self, history: History) -> Decision | None:
        """Once more on the stage's last evaluation, before its folder is written: ``alert`` or ``rollback``."""
        return None

    def refuse_infinite(self, *names: str) -> None:
        """Of numbers that something is compared with, where no value would ever be on the other side."""
        for name in names:
            if math.isinf(getattr(self, name)):
                value = getattr(self, name)
                raise ValueError(f"{type(self).__name__}: {name}: expected a finite number, got {value!r}")

    def __call__(self, history: History) -> Decision | None:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(history)")
