"""Trials of a stage as their folders tell them, and which to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_stages.checkpoint import read_json
from hf_stages.reports._run import read_run


@dataclass(frozen=True)
class Trial:
    """One rate and share of replay; losses by domain, before the stage and after the trial. No losses: not finite."""

    rate: float
    replay: float
    before: Mapping[str, float]
    after: Mapping[str, float]

    @property
    def finite(self) -> bool:
        return bool(self.after)

    def gain(self, new: Sequence[str]) -> float:
        """By which share the loss on the new domains fell, on average."""
        return sum((self.before[d] - self.after[d]) / abs(self.before[d]) for d in new) / len(new)

    def forgotten(self, earlier: Sequence[str]) -> float:
        """By which share the loss rose on the earlier domain that lost most; below zero: none rose."""
        return max((self.after[d] - self.before[d]) / abs(self.before[d]) for d in earlier)


@dataclass(frozen=True)
class Trials:
    """All of them, and what they are judged by."""

    stage: str
    steps: int
    whole: int
    declared: float
    new: tuple[str, ...]
    earlier: tuple[str, ...]
    budget: float
    each: tuple[Trial, ...]
    resumes_to: float | None = None
    """Of a stage that resumes its parent's schedule: which share of its first rate it ends at."""

    def within(self, trial: Trial) -> bool:
        return trial.finite and trial.forgotten(self.earlier) <= self.budget

    @property
    def pick(self) -> Trial | None:
        """The largest gain on the new domains within the budget; None where no trial is, or none gains."""
        good = [t for t in self.each if self.within(t) and t.gain(self.new) > 0]
        return max(good, key=lambda t: t.gain(self.new), default=None)


def read_trial(folder: str | Path) -> Trial:
    folder = Path(folder)
    told = read_json(folder / "arm.json", "a trial")
    trial = told["trial"]
    if told.get("diverged"):
        return Trial(trial["rate"], trial["replay"], {}, {})
    run = read_run(folder)
    last = next((stage for stage in run.done if stage.name == trial["stage"]), None)
    if last is None or last.summary is None:
        raise ValueError(
            f"{folder}: the trial of {trial['stage']!r} is not finished, or damaged; remove the folder and try again"
        )
    parent = next((stage.summary for stage in run.done if stage.name == last.parent), None) or {}
    here, there = _losses(last.summary.get("domains_before")), _losses(parent.get("domains"))
    # Where collators go by source the parent, as declared, may have measured a domain through another one.
    before = {**there, **here} if trial.get("by_source") else {**here, **there}
    return Trial(trial["rate"], trial["replay"], before, _losses(last.summary["domains"]))


def _losses(domains: Mapping[str, Mapping[str, float]] | None) -> dict[str, float]:
    return {name: found["loss"] for name, found in (domains or {}).items() if "loss" in found}


def budget_of(text: str) -> float:
    """A share of the loss, as the gate ``Forgetting`` takes it.

    >>> budget_of("5%"), budget_of("0.05")
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
