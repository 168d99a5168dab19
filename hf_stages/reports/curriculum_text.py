"""Shows as text what a stage will draw from its sources, and what its batches will hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hf_stages.planning.plan import Plan, PlannedStage
from hf_stages.reports.text import count, shorten

SHOWN = 100
_GROUPS = 10
_WALKED = 200_000
_MANY_PASSES = 4


def source_facts(planned: PlannedStage) -> dict[str, dict[str, Any]] | None:
    """Return for each source: its examples, how many are drawn, in how many passes, and its first and last share."""
    blend, batch = planned.blend, planned.size.global_batch
    if blend is None:
        return None
    first = blend.declared_shares(0, batch)
    last = blend.declared_shares(max(blend.draws - batch, 0), blend.draws)
    drawn = [None] * len(blend.names) if blend.one_by_one else blend.draws_before(blend.draws)
    return {
        leaf.name: {
            "available": leaf.n,
            "drawn": n,
            "passes": n / leaf.n if n is not None and leaf.n else None,
            "first_share": start,
            "last_share": end,
        }
        for leaf, n, start, end in zip(blend.leaves, drawn, first, last, strict=True)
    }


def sources_text(planned: PlannedStage) -> str | None:
    """Return a line with each source's shares in the first and last update, examples drawn, and passes over it."""
    found = source_facts(planned)
    if found is None:
        return None
    texts = []
    for name, about in found.items():
        if name in planned.blend.replay_only:
            texts.append(f"{name} where the gate replays it")
            continue
        start, end = (f"{about[key]:.0%}".replace("%", " %") for key in ("first_share", "last_share"))
        text = f"{name} {start if start == end else f'{start} -> {end}'}"
        if about["drawn"] is not None:
            text += f", {about['drawn']:,} drawn"
        if about["passes"] is not None:
            text += f" of {about['available']:,} ({about['passes']:.2g} passes)"
        elif about["available"] is not None:
            text += f", {about['available']:,} there"
        texts.append(text)
    return "; ".join(texts) + (" (shares of tokens)" if planned.blend.one_by_one else "")


def data_notes(plan: Plan) -> Iterator[str]:
    """Yield notes on a plan's data that usually mean a mistake."""
    for planned in plan.stages:
        for name, about in (source_facts(planned) or {}).items():
            if (about["passes"] or 0) > _MANY_PASSES:
                yield (
                    f"{planned.name} reads {name} {about['passes']:.2g} times; beyond about {_MANY_PASSES} passes "
                    "repeated text is worth much less than new text (arXiv 2305.16264)."
                )


def batches_text(plan: Plan, width: int = 100) -> str:
    """Return as text what a hundred updates of each stage hold, by source, spread over the stage."""
    return "\n\n".join("\n".join(_batches(planned, width)) for planned in plan.stages)


def batches_of(planned: PlannedStage) -> list[dict[str, Any]]:
    """Return examples per update by source (mean, least, most) for ten parts of the stage."""
    blend, batch = planned.blend, planned.size.global_batch
    if blend is None:
        return []
    updates = _sampled_updates(planned)
    held = _examples_by_source(blend, updates, batch)
    stretches = []
    size = -(-len(updates) // _GROUPS)
    for start in range(0, len(updates), size):
        part, own = updates[start : start + size], held[start : start + size]
        each = {}
        for i, name in enumerate(blend.names):
            values = [counts[i] for counts in own]
            each[name] = {"mean": sum(values) / len(values), "least": min(values), "most": max(values)}
        stretches.append({"from": part[0] / planned.steps, "to": (part[-1] + 1) / planned.steps, "examples": each})
    return stretches


def _sampled_updates(planned: PlannedStage) -> list[int]:
    steps = planned.steps
    if planned.blend.one_by_one:  # these must be drawn one after another
        steps = min(steps, max(_WALKED // planned.size.global_batch, 1))
    return sorted({steps * k // SHOWN for k in range(SHOWN)})


def _examples_by_source(blend: Any, updates: Sequence[int], batch: int) -> list[list[int]]:
    if not blend.one_by_one:
        edges = [(blend.draws_before(u * batch), blend.draws_before((u + 1) * batch)) for u in updates]
        return [[b - a for a, b in zip(before, after, strict=True)] for before, after in edges]
    wanted = set(updates)
    found: dict[int, list[int]] = {u: [0] * len(blend.names) for u in updates}
    for position, (leaf, _) in enumerate(blend.draw_range(blend.walk(), 0, (updates[-1] + 1) * batch)):
        if position // batch in wanted:
            found[position // batch][leaf] += 1
    return [found[u] for u in updates]


def _batches(planned: PlannedStage, width: int) -> Iterator[str]:
    batch = planned.size.global_batch
    blend = planned.blend
    if blend is None:
        yield f"{planned.index} {planned.name}: one dataset, {batch} examples in every update"
        return
    if blend.one_by_one and blend.streams:
        yield f"{planned.index} {planned.name}: tokens of streams, known only as they are read"
        return
    stretches = batches_of(planned)
    shown = min(SHOWN, planned.steps)
    yield (
        f"{planned.index} {planned.name}: {shown} of {count(planned.steps, exact=planned.exact)} updates, {batch} "
        "examples each (mean, least-most)"
    )
    column = max(14, *(len(name) + 2 for name in blend.names))
    room = max(width - 12 - column * len(blend.names), 10)
    yield f"{'progress':<12}" + "".join(shorten(name, column - 2).ljust(column) for name in blend.names)
    for stretch in stretches:
        cells, bar = "", ""
        for name, mark in zip(blend.names, "#=+-:.ox" * len(blend.names), strict=False):
            about = stretch["examples"][name]
            span = "" if about["least"] == about["most"] else f" {about['least']}-{about['most']}"
            cells += f"{about['mean']:.3g}{span}".ljust(column)
            bar += mark * round(about["mean"] / batch * min(room, 40))
        yield f"{stretch['from']:>4.0%} - {stretch['to']:<5.0%}{cells}{bar}".rstrip()
