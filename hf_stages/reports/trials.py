"""Reads the trials of a stage from their folders, and picks one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_stages.core.sealed_folders import read_json
from hf_stages.reports.run_folder import read_run


@dataclass(frozen=True)
class Trial:
    """A trial of one rate and share of replay: losses by domain before and after it.

    Without losses, they were not finite.
    """

    rate: float
    replay: float
    before: Mapping[str, float]
    after: Mapping[str, float]

    @property
    def finite(self) -> bool:
        return bool(self.after)

    def same_as(self, other: Trial) -> bool:
        return (self.rate, self.replay) == (other.rate, other.replay)

    def gain(self, new: Sequence[str]) -> float:
        """Return the share by which the loss on the new domains fell, on average."""
        return sum((self.before[d] - self.after[d]) / abs(self.before[d]) for d in new) / len(new)

    def forgotten(self, earlier: Sequence[str]) -> float:
        """Return the share by which the loss rose on the earlier domain that lost most. Below zero, none rose."""
        return max((self.after[d] - self.before[d]) / abs(self.before[d]) for d in earlier)


@dataclass(frozen=True)
class Trials:
    """All trials of a stage, and the limits that they are judged by."""

    stage: str
    steps: int
    whole: int
    declared: float
    new: tuple[str, ...]
    earlier: tuple[str, ...]
    budget: float
    tried: tuple[Trial, ...]
    resumes_to: float | None = None
    """Where the stage resumes its parent's schedule: its last rate as a share of its first."""
    confirmed: tuple[Trial, ...] = ()
    """Candidates that were trained over all of the stage's updates, best first, until one kept the budget."""

    def within_budget(self, trial: Trial) -> bool:
        return trial.finite and trial.forgotten(self.earlier) <= self.budget

    def keeps_budget(self, trial: Trial) -> bool:
        """Return whether the trial keeps the budget, and also over all updates where that was tried."""
        return self.within_budget(trial) and all(self.within_budget(t) for t in self.confirmed if t.same_as(trial))

    @property
    def candidates(self) -> list[Trial]:
        """Return the trials that gain within the budget, the largest gain on the new domains first."""
        good = [t for t in self.tried if self.within_budget(t) and t.gain(self.new) > 0]
        return sorted(good, key=lambda t: t.gain(self.new), reverse=True)

    @property
    def pick(self) -> Trial | None:
        """Return the best candidate, or the confirmed one where candidates were confirmed; None where there is none."""
        for trial in self.candidates:
            whole = next((t for t in self.confirmed if t.same_as(trial)), None)
            if not self.confirmed or (whole is not None and self.within_budget(whole)):
                return trial
        return None

    @property
    def next_to_confirm(self) -> Trial | None:
        """Return the next candidate to train in full; None where a pick is confirmed, or no candidate is left.

        A candidate is skipped if one with a lower rate and more replay forgot too much already.
        """
        if self.confirmed and self.within_budget(self.confirmed[-1]):
            return None
        for trial in self.candidates:
            if not any(trial.rate >= t.rate and trial.replay <= t.replay for t in self.confirmed):
                return trial
        return None


def read_trial(folder: str | Path) -> Trial:
    folder = Path(folder)
    written = read_json(folder / "arm.json", "a trial")
    trial = written["trial"]
    if written.get("diverged"):
        return Trial(trial["rate"], trial["replay"], {}, {})
    run = read_run(folder)
    last = next((stage for stage in run.done if stage.name == trial["stage"]), None)
    if last is None or last.summary is None:
        raise ValueError(
            f"{folder}: the trial of {trial['stage']!r} is not finished, or damaged; remove the folder and try again"
        )
    parent = next((stage.summary for stage in run.done if stage.name == last.parent), None) or {}
    here, there = _losses(last.summary.get("domains_start")), _losses(parent.get("domains"))
    # Where collators differ by source, the parent may have measured a domain with another collator.
    before = {**there, **here} if trial.get("by_source") else {**here, **there}
    return Trial(trial["rate"], trial["replay"], before, _losses(last.summary["domains"]))


def _losses(domains: Mapping[str, Mapping[str, float]] | None) -> dict[str, float]:
    return {name: found["loss"] for name, found in (domains or {}).items() if "loss" in found}


def parse_budget(text: str) -> float:
    """Read a share of the loss, as the gate ``Forgetting`` takes it.

    >>> parse_budget("5%"), parse_budget("0.05")
    (0.05, 0.05)
    """
    try:
        bare = text.strip()
        found = float(bare.removesuffix("%")) / (100 if bare.endswith("%") else 1)
    except ValueError:
        found = float("nan")
    if not 0 <= found <= 1:
        raise ValueError(f"budget: expected a share of the loss such as 5% or 0.05, got {text!r}")
    return found
