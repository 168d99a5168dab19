"""Compares arms as text and as data: what they spent, every domain, and what the numbers support."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_stages.reports.arms import LOWER, Comparison, Gap, spread_of
from hf_stages.reports.tables.domain_table import aligned
from hf_stages.reports.text import count, duration, rate

_CAVEATS = (
    "A claim needs a difference beyond the larger standard deviation of both arms, in the same direction under every "
    "seed. Of a few seeds that is a hint: with three, chance alone has all signs agree once in four times. Losses of "
    "different domains cannot be compared."
)


def versus_table(comparison: Comparison) -> str:
    """Write the tables for the terminal."""
    parts = [
        _arms_text(comparison),
        _spent_text(comparison),
        _equality_text(comparison),
        _quality_text(comparison),
        _claims_text(comparison),
    ]
    return "\n\n".join(parts)


def versus_dict(comparison: Comparison) -> dict[str, Any]:
    """Return the same as plain data."""
    found: dict[str, Any] = {"seeds": comparison.seeds, "reference": comparison.reference, "arms": {}, "domains": {}}
    for arm in comparison.arms:
        runs = comparison.runs_of(arm)
        found["arms"][arm] = {
            "says": runs[0].description,
            "lr_sum": runs[0].lr_sum,
            "lr_peak": runs[0].lr_peak,
            "runs": [
                {
                    "seed": r.seed,
                    "updates": r.updates,
                    "tokens": r.tokens,
                    "seconds": r.seconds,
                    "examples": dict(r.examples),
                    "tokens_by_source": dict(r.source_tokens),
                    "before": dict(r.before),
                    "final": {d: dict(v) for d, v in r.final.items()},
                }
                for r in runs
            ],
        }
    for domain, metric in comparison.metrics():
        found["domains"].setdefault(domain, {})[metric] = _measured(comparison, comparison.values(domain, metric))
    found["mixture"] = {
        "weights": dict(comparison.weights),
        "weighed": comparison.weighed_by,
        **_measured(comparison, comparison.mixture()),
    }
    found["unequal"] = comparison.unequal()
    found["claims"] = claims(comparison)
    return found


def _measured(comparison: Comparison, values: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    each = {arm: spread_of(list(v.values())) for arm, v in values.items() if v}
    return {
        "arms": {arm: {"mean": s.mean, "spread": s.spread} for arm, s in each.items()},
        "gaps": [
            {
                "arm": g.arm,
                "against": g.other,
                "difference": g.mean,
                "spread": g.spread,
                "beyond_spread": g.beyond_spread,
            }
            for g in comparison.gaps(values)
        ],
    }


def _arms_text(comparison: Comparison) -> str:
    width = max(len(arm) for arm in comparison.arms)
    lines = [f"{arm.ljust(width)}  {comparison.runs_of(arm)[0].description}" for arm in comparison.arms]
    return f"Arms (seeds {', '.join(map(str, comparison.seeds))})\n" + "\n".join(lines)


def _spent_text(comparison: Comparison) -> str:
    sources = list(dict.fromkeys(name for run in comparison.runs for name in run.source_tokens))
    rows = [["", "updates", "examples", "tokens", *(f"of {s}" for s in sources), "LR sum", "LR peak", "training time"]]
    for arm in comparison.arms:
        runs = comparison.runs_of(arm)
        seconds = spread_of([run.seconds for run in runs])
        time = duration(seconds.mean) + (f" ± {duration(seconds.spread)}" if seconds.spread is not None else "")
        rows.append(
            [
                arm,
                _range([r.updates for r in runs]),
                _range([sum(r.examples.values()) for r in runs]),
                _range([r.tokens for r in runs]),
                *(_range([r.source_tokens.get(s, 0) for r in runs]) for s in sources),
                rate(runs[0].lr_sum),
                rate(runs[0].lr_peak),
                time,
            ]
        )
    return f"Spent, of each seed (LR as planned; time without evaluations)\n{aligned(rows)}"


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return count(low) if count(low) == count(high) else f"{count(low)}-{count(high)}"


def _equality_text(comparison: Comparison) -> str:
    found = comparison.unequal()
    if not found:
        return "Equal: updates, examples and tokens (within 1 %), and the loss on every domain before the first update."
    return "NOT EQUAL, so no difference below is the order's alone:\n" + "\n".join(f"! {line}" for line in found)


def _quality_text(comparison: Comparison) -> str:
    rows = [["", *comparison.arms]]
    for domain, metric in comparison.metrics():
        rows.append([f"{domain}: {metric.replace('_', ' ')}", *_cells(comparison, comparison.values(domain, metric))])
    rows.append(["mixture loss", *_cells(comparison, comparison.mixture())])
    weights = ", ".join(f"{name} {weight:.3g}" for name, weight in comparison.weights.items())
    return (
        f"At the end (mean ± standard deviation over seeds)\n{aligned(rows)}\nMixture loss: {weights}, "
        f"{comparison.weighed_by}."
    )


def _cells(comparison: Comparison, values: Mapping[str, Mapping[int, float]]) -> list[str]:
    cells = []
    for arm in comparison.arms:
        if not values[arm]:
            cells.append("-")
            continue
        found = spread_of(list(values[arm].values()))
        cells.append(f"{found.mean:.4g}" + (f" ± {found.spread:.2g}" if found.spread is not None else ""))
    return cells


def claims(comparison: Comparison) -> list[str]:
    """Return a sentence for each domain and arm, and for the mixture."""
    found = []
    for domain, metric in comparison.metrics():
        if metric == "bits_per_byte":
            continue  # it follows the loss
        found += [
            _claim(f"{domain}, {metric}", g, metric in LOWER)
            for g in comparison.gaps(comparison.values(domain, metric))
        ]
    found += [_claim("mixture loss", gap, True) for gap in comparison.gaps(comparison.mixture())]
    return found


def _claim(what: str, gap: Gap, lower: bool) -> str:
    size, seeds = f"{abs(gap.mean):.3g}", len(gap.differences)
    if gap.spread is None:
        word = ("lower" if gap.mean < 0 else "higher") if gap.mean else "equal"
        return f"{what}: {gap.arm} {word} than {gap.other} by {size} in one seed; no spread, so no claim."
    if not gap.beyond_spread:
        beyond = abs(gap.mean) > gap.spread
        why = "not of one direction under all seeds" if beyond else f"within the spread ({gap.spread:.3g})"
        return f"{what}: no claim; {gap.arm} and {gap.other} differ by {size}, {why}."
    word = ("better" if gap.mean < 0 else "worse") if lower else ("higher" if gap.mean > 0 else "lower")
    return (
        f"{what}: {gap.arm} {word} than {gap.other} by {size}, beyond the spread ({gap.spread:.3g}) in {seeds} of "
        f"{seeds} seeds."
    )


def _claims_text(comparison: Comparison) -> str:
    lines = claims(comparison)
    head = "What this supports" if not comparison.unequal() else "What this supports, of arms that were not equal"
    return f"{head}\n" + "\n".join(f"- {line}" for line in lines) + f"\n{_CAVEATS}"
