"""End the stage once it has used up its tokens or its time."""

from __future__ import annotations

from dataclasses import dataclass

from hf_stages.core.duration import Duration
from hf_stages.gates.base import Decision, Gate, History


@dataclass(frozen=True)
class Budget(Gate):
    """Ends the stage after the update that reaches ``limit``: ``"1B tokens"``, ``"90 minutes"``, ``"500 steps"``.

    A budget in time reads the wall clock: a resumed stage may end at another step than an uncut one.

    >>> Budget("1k tokens")(History(step=3, tokens=1024)).reason
    'the budget of 1k tokens is used up (1024 tokens)'
    """

    limit: str | Duration
    """A duration in steps, tokens or time."""
    on = "step"

    def __post_init__(self) -> None:
        limit = Duration.parse(self.limit)
        if limit.unit not in ("tokens", "seconds", "steps"):
            raise ValueError(f"Budget: expected tokens, a time or steps, got {str(limit)!r}")
        object.__setattr__(self, "limit", limit)

    @property
    def reads_clock(self) -> bool:  # type: ignore[override]
        return self._limit.unit == "seconds"

    @property
    def _limit(self) -> Duration:
        assert isinstance(self.limit, Duration)
        return self.limit

    def __call__(self, history: History) -> Decision | None:
        used = {"tokens": history.tokens, "seconds": history.seconds, "steps": history.step}[self._limit.unit]
        if used < self._limit.amount:
            return None
        return Decision("end", f"the budget of {self._limit} is used up ({used:.6g} {self._limit.unit})")
