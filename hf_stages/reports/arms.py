"""Reads the arms of a comparison from their folders: what each spent, and its results on every domain."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_stages.core.sealed_folders import read_json
from hf_stages.reports.run_folder import ReadRun, ReadStage, read_run

REFERENCE = "joint"
LOWER = ("loss", "bits_per_byte")
"""Metrics that are better when lower. Of other metrics a report says only which is higher."""
TOLERANCE = 0.01
"""The numbers of tokens of two arms may differ by this share."""
_TIMED = "_runtime"


@dataclass(frozen=True)
class ArmRun:
    """One arm of a comparison, run with one seed."""

    arm: str
    seed: int
    description: str
    updates: int
    planned: int
    lr_sum: float
    lr_peak: float
    tokens: int
    seconds: float
    """The seconds of training, without evaluations."""
    examples: Mapping[str, int]
    source_tokens: Mapping[str, int]
    before: Mapping[str, float]
    """Loss on each domain before the first update."""
    final: Mapping[str, Mapping[str, float]]
    over_time: Mapping[str, Sequence[tuple[float, float]]]
    """For each domain (seconds of training, loss)."""


def read_arm(folder: str | Path) -> ArmRun:
    """Read a finished arm; raise ValueError where it is not complete."""
    folder = Path(folder)
    written, run = read_json(folder / "arm.json", "an arm of a comparison"), read_run(folder)
    if run.status != "done" or run.problems or not run.done:
        raise ValueError(f"{folder}: expected a finished run, got {'; '.join(run.problems) or run.status}")
    arm = written["arm"]
    examples: dict[str, int] = {}
    tokens: dict[str, int] = {}
    called = arm.get("called") or [{}] * len(arm["drawn"])
    for stage, drawn, names in zip(run.done, arm["drawn"], called, strict=True):
        for own, (n, held) in _examples_and_tokens(stage.summary or {}, drawn).items():
            name = names.get(own, own)
            examples[name] = examples.get(name, 0) + n
            tokens[name] = tokens.get(name, 0) + held
    summaries = [stage.summary or {} for stage in run.done]
    clock = _Clock(run)
    return ArmRun(
        arm=arm["name"],
        seed=written["seed"],
        description=arm["says"],
        updates=sum(s["steps"] for s in summaries),
        planned=arm["updates"],
        lr_sum=arm["lr_sum"],
        lr_peak=arm["lr_peak"],
        tokens=round(sum(s["tokens"] for s in summaries)),
        seconds=clock.seconds,
        examples=examples,
        source_tokens=tokens,
        before={d: v["loss"] for d, v in (summaries[0].get("domains_start") or {}).items() if "loss" in v},
        final={d: {k: v for k, v in found.items() if k != "items"} for d, found in summaries[-1]["domains"].items()},
        over_time=_over_time(run, clock),
    )


def _examples_and_tokens(summary: Mapping[str, Any], planned: Mapping[str, float]) -> dict[str, tuple[int, int]]:
    """Return (examples, tokens) of each source: as they were counted, or for a plain dataset as planned."""
    if summary.get("data"):
        found = summary["data"]["sources"].items()
        return {name: (about["examples"], about["tokens"]) for name, about in found}
    return {name: (round(count), round(summary["tokens"])) for name, count in planned.items()}


class _Clock:
    """Converts a step of the run to seconds of training, without evaluations.

    A stage's updates count as equally long.
    """

    def __init__(self, run: ReadRun) -> None:
        self.points = [(0, 0.0)]
        for stage in run.done:
            summary = stage.summary or {}
            end = summary["global_step"]
            spent = max(summary["seconds"] - _evaluation_seconds(run, stage, end), 0.0)
            self.points.append((end, self.points[-1][1] + spent))

    @property
    def seconds(self) -> float:
        return self.points[-1][1]

    def __call__(self, step: float) -> float:
        for (s0, t0), (s1, t1) in zip(self.points, self.points[1:], strict=False):
            if step <= s1:
                return t0 + (t1 - t0) * (step - s0) / max(s1 - s0, 1)
        return self.seconds


def _evaluation_seconds(run: ReadRun, stage: ReadStage, end: int) -> float:
    """Return the seconds of evaluations within a stage's clock, which runs from its first evaluation to its last
    update."""
    own = [log for log in run.logs if log.get("stage") == stage.index]
    return sum(
        value
        for log in own
        for key, value in log.items()
        if key.endswith(_TIMED) and (key.startswith("start_") or (key.startswith("eval_") and log["step"] < end))
    )


def _over_time(run: ReadRun, clock: _Clock) -> dict[str, list[tuple[float, float]]]:
    domains = list((run.done[-1].summary or {})["domains"])
    found: dict[str, dict[int, float]] = {name: {} for name in domains}
    for log in run.logs:
        for prefix in ("start_", "eval_"):
            for name in domains:
                if isinstance(value := log.get(f"{prefix}{name}_loss"), int | float):
                    found[name][log["step"]] = value
    for name, value in ((n, v["loss"]) for n, v in (run.done[-1].summary or {})["domains"].items() if "loss" in v):
        found[name][(run.done[-1].summary or {})["global_step"]] = value
    return {name: [(clock(step), points[step]) for step in sorted(points)] for name, points in found.items()}


# ---- comparing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and the sample standard deviation, which is None for one seed."""

    mean: float
    spread: float | None


def spread_of(values: Sequence[float]) -> Spread:
    """Return the mean and the spread of values.

    >>> spread_of([1.0, 3.0]), spread_of([2.0])
    (Spread(mean=2.0, spread=1.4142135623730951), Spread(mean=2.0, spread=None))
    """
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Gap:
    """The difference of two arms in one metric of one domain: ``arm`` minus ``other``, seed by seed."""

    arm: str
    other: str
    differences: tuple[float, ...]
    spread: float | None
    """The larger of the two arms' standard deviations over seeds."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.differences)

    @property
    def beyond_spread(self) -> bool:
        """Return whether the difference is larger than the spread and has the same sign with every seed."""
        if self.spread is None or not all(math.isfinite(d) for d in self.differences):
            return False
        agree = all(d > 0 for d in self.differences) or all(d < 0 for d in self.differences)
        return agree and abs(self.mean) > self.spread


def gap_of(arm: str, other: str, values: Mapping[str, Mapping[int, float]]) -> Gap:
    """Return the gap of two arms from values by arm and seed, over the seeds that both have.

    >>> gap_of("a", "b", {"a": {0: 1.0, 1: 1.1}, "b": {0: 2.0, 1: 2.2}}).beyond_spread
    True
    """
    seeds = sorted(set(values[arm]) & set(values[other]))
    spreads = [spread_of([values[name][s] for s in seeds]).spread for name in (arm, other)]
    known = [s for s in spreads if s is not None]
    return Gap(arm, other, tuple(values[arm][s] - values[other][s] for s in seeds), max(known) if known else None)


@dataclass(frozen=True)
class Comparison:
    """All arms with all seeds."""

    runs: tuple[ArmRun, ...]
    weights: Mapping[str, float]
    """The weight of each domain in the mixture loss."""
    weighed_by: str

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(run.arm for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        return list(dict.fromkeys(run.seed for run in self.runs))

    @property
    def reference(self) -> str:
        """Return the arm that the others are compared with."""
        return REFERENCE if REFERENCE in self.arms else self.arms[0]

    def runs_of(self, arm: str) -> list[ArmRun]:
        return [run for run in self.runs if run.arm == arm]

    def metrics(self) -> list[tuple[str, str]]:
        """Return pairs (domain, metric): losses first, then bits per byte, then task metrics."""
        found: dict[tuple[str, str], None] = {}
        for run in self.runs:
            found.update(dict.fromkeys((d, m) for d, values in run.final.items() for m in values))
        order = {"loss": 0, "bits_per_byte": 1}
        learned = {name: place for place, name in enumerate(self.runs[0].source_tokens)}
        return sorted(found, key=lambda pair: (order.get(pair[1], 2), learned.get(pair[0], len(learned))))

    def values(self, domain: str, metric: str) -> dict[str, dict[int, float]]:
        """Return the values of a metric by arm and seed."""
        found: dict[str, dict[int, float]] = {arm: {} for arm in self.arms}
        for run in self.runs:
            if (value := run.final.get(domain, {}).get(metric)) is not None:
                found[run.arm][run.seed] = value
        return found

    def mixture(self) -> dict[str, dict[int, float]]:
        """Return the weighted mean of the domains' losses, by arm and seed."""
        found: dict[str, dict[int, float]] = {arm: {} for arm in self.arms}
        for run in self.runs:
            if all("loss" in run.final.get(domain, {}) for domain in self.weights):
                found[run.arm][run.seed] = sum(w * run.final[d]["loss"] for d, w in self.weights.items())
        return found

    def gaps(self, values: Mapping[str, Mapping[int, float]]) -> list[Gap]:
        """Compare every other arm with the reference."""
        known = [arm for arm in self.arms if values[arm] and arm != self.reference]
        return [gap_of(arm, self.reference, values) for arm in known] if values[self.reference] else []

    def unequal(self) -> list[str]:
        """Return in words what the arms spent differently; empty where they spent the same."""
        found: dict[str, None] = {}
        for seed in self.seeds:
            runs = {run.arm: run for run in self.runs if run.seed == seed}
            base = runs[self.reference]
            for run in runs.values():
                found.update(dict.fromkeys(_unequal_to(run, base)))
        return list(found)


def _unequal_to(run: ArmRun, base: ArmRun) -> list[str]:
    found, who = [], f"{run.arm} (seed {run.seed})"
    if run.updates != base.updates:
        found.append(f"{who}: {run.updates} updates, {base.arm} {base.updates}")
    for what, own, other in (
        ("examples", sum(run.examples.values()), sum(base.examples.values())),
        ("tokens", run.tokens, base.tokens),
    ):
        if abs(own - other) > TOLERANCE * other:
            found.append(f"{who}: {own:,} {what}, {base.arm} {other:,} ({own / other - 1:+.1%})")
    for domain, loss in base.before.items():
        if domain in run.before and abs(run.before[domain] - loss) > 1e-4 * abs(loss):
            found.append(f"{who}: began at a loss of {run.before[domain]:.5g} on {domain}, {base.arm} at {loss:.5g}")
    return found


def compare(folders: Sequence[str | Path], weights: Mapping[str, float] | None = None) -> Comparison:
    """Read finished arms.

    Without ``weights``, a domain's weight is the tokens that the staged arm read of its source.
    """
    runs = tuple(read_arm(folder) for folder in folders)
    domains = list(dict.fromkeys(d for run in runs for d in run.final))
    if weights is not None:
        if unknown := [name for name in weights if name not in domains]:
            raise ValueError(f"weights: no domain is called {unknown[0]!r}; there are {', '.join(domains)}")
        if not weights or any(w < 0 for w in weights.values()) or not sum(weights.values()) > 0:
            raise ValueError(f"weights: expected numbers from 0 on, not all zero, got {dict(weights)}")
        return Comparison(runs, _shares(weights), "as given")
    first = next((run for run in runs if run.arm == "staged"), runs[0])
    read = {name: first.source_tokens[name] for name in domains if first.source_tokens.get(name)}
    if len(read) < 2:
        return Comparison(runs, _shares(dict.fromkeys(domains, 1.0)), "equally: no source is called as the domains are")
    left = [name for name in domains if name not in read]
    how = f"by the tokens that the {first.arm} arm read of the source of that name"
    return Comparison(
        runs, _shares(read), how + (f"; {', '.join(left)} left out: no source of that name" if left else "")
    )


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
