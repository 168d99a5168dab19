"""Writes the trials of a stage and the pick, as text and as data."""

from __future__ import annotations

from typing import Any

from hf_stages.reports.tables.domain_table import aligned
from hf_stages.reports.text import rate
from hf_stages.reports.trials import Trial, Trials


def probe_table(trials: Trials) -> str:
    """Write the table, the pick, and how far to trust it."""
    domains = [*trials.new, *trials.earlier]
    rows = [["rate", "replay", *domains, "gain", "forgotten", ""]]
    start = next((t.before for t in trials.tried if t.finite), None)
    if start is not None:
        rows.append(["(boundary)", "", *(f"{start[d]:.4g}" for d in domains), "", "", ""])
    picked = trials.pick
    for trial in sorted(trials.tried, key=lambda t: (t.replay, t.rate)):
        cells = [rate(trial.rate), f"{100 * trial.replay:.3g} %" if trial.replay else "-"]
        if not trial.finite:
            rows.append([*cells, *("-" for _ in domains), "-", "-", "the loss was not finite"])
            continue
        mark = "<- pick" if trial is picked else "" if trials.within_budget(trial) else "over budget"
        values = [f"{trial.after[d]:.4g}" for d in domains]
        rows.append(
            [*cells, *values, _percent(trial.gain(trials.new)), _percent(trial.forgotten(trials.earlier)), mark]
        )
    head = (
        f"{trials.stage}: {trials.steps} of {trials.whole} updates from its boundary; loss on {', '.join(trials.new)} "
        f"(new) and {', '.join(trials.earlier)} (earlier), budget {_percent(trials.budget)}"
    )
    return "\n".join([head, aligned(rows), "", *_confirmed_text(trials), pick_text(trials)])


def _confirmed_text(trials: Trials) -> list[str]:
    """Write the results of candidates that were trained in full."""
    if not trials.confirmed:
        return []
    rows = [["rate", "replay", *trials.new, *trials.earlier, "gain", "forgotten", ""]]
    for trial in trials.confirmed:
        cells = [rate(trial.rate), f"{100 * trial.replay:.3g} %" if trial.replay else "-"]
        if not trial.finite:
            rows.append([*cells, *("-" for _ in (*trials.new, *trials.earlier)), "-", "-", "the loss was not finite"])
            continue
        values = [f"{trial.after[d]:.4g}" for d in (*trials.new, *trials.earlier)]
        mark = "kept" if trials.within_budget(trial) else "over budget"
        rows.append(
            [*cells, *values, _percent(trial.gain(trials.new)), _percent(trial.forgotten(trials.earlier)), mark]
        )
    return [f"Over all {trials.whole} updates:", aligned(rows), ""]


def probe_dict(trials: Trials) -> dict[str, Any]:
    """Return the same as plain data."""

    def one(trial: Trial | None) -> dict[str, Any] | None:
        if trial is None:
            return None
        found: dict[str, Any] = {"rate": trial.rate, "replay": trial.replay, "finite": trial.finite}
        if trial.finite:
            found |= {
                "before": dict(trial.before),
                "after": dict(trial.after),
                "within_budget": trials.within_budget(trial),
            }
            found |= {"gain": trial.gain(trials.new), "forgotten": trial.forgotten(trials.earlier)}
        return found

    same = ("stage", "steps", "whole", "declared", "budget")
    return {
        **{key: getattr(trials, key) for key in same},
        "new": list(trials.new),
        "earlier": list(trials.earlier),
        "trials": [one(trial) for trial in trials.tried],
        "confirmed": [one(trial) for trial in trials.confirmed],
        "pick": one(trials.pick),
        "said": pick_text(trials),
    }


def pick_text(trials: Trials) -> str:
    """Write the pick in words, and its limits."""
    picked = trials.pick
    if picked is None and trials.confirmed:
        return (
            "No pick: over all of the stage's updates no candidate stayed within the budget. Try lower rates "
            "(--rates), more of the earlier data (--replay 0.25), or a larger budget."
        )
    if picked is None:
        return (
            "No pick: no trial both gained and stayed within the budget. Try lower rates (--rates), a share of the "
            "earlier data (--replay 0.05), or a larger budget."
        )
    lines = [
        f"Pick: {rate(picked.rate)}{_with_replay(picked)}, the largest gain within the budget. Declared: "
        f"{rate(trials.declared)}."
    ]
    if trials.resumes_to is not None:
        lines.append(
            f"The stage resumes its parent's schedule, which goes on from {rate(trials.declared)} and has no rate of "
            f"its own. For another one write Rewarm(to={picked.rate:.4g}, warmup=0, then='Linear(1, "
            f"{trials.resumes_to:.3g})'), or the like."
        )
    lines += _rates_beside(trials, picked)
    if trials.confirmed:
        return "\n".join([*lines, f"Over all {trials.whole} updates it stayed within it, too."])
    if trials.steps < trials.whole:
        lines.append(
            f"A trial is {trials.steps} of {trials.whole} updates with the whole schedule squeezed into them. The full "
            f"stage spends {trials.whole / trials.steps:.3g} times as many at the same rates: expect it to forget "
            "more, unless replay holds it. --confirm trains the pick in full; or leave room in the budget, and put the "
            "gate Forgetting on the stage."
        )
    return "\n".join(lines)


def _rates_beside(trials: Trials, picked: Trial) -> list[str]:
    """Write where a better rate may lie that was not tried."""
    own = sorted((t for t in trials.tried if t.replay == picked.replay), key=lambda t: t.rate)
    place = own.index(picked)
    if place + 1 < len(own) and not trials.keeps_budget(own[place + 1]):
        return [f"The next rate tried, {rate(own[place + 1].rate)}, is over the budget: the best may lie between them."]
    if len(own) > 1 and place in (0, len(own) - 1):
        return [f"It is the {'lowest' if place == 0 else 'highest'} rate tried: the best may lie beyond it."]
    return []


def _with_replay(trial: Trial) -> str:
    return f" with {100 * trial.replay:.3g} % replay" if trial.replay else ""


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
