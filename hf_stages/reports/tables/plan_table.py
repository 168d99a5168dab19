"""Writes the plan as text: what every stage will do."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hf_stages.core.references import teaching_stage
from hf_stages.core.stage import Recipe
from hf_stages.planning.cautions import cautions
from hf_stages.planning.model_shapes import StageShape, shape_of, stage_shapes
from hf_stages.planning.plan import Plan, PlannedStage
from hf_stages.reports.curriculum_text import data_notes, source_facts, sources_text
from hf_stages.reports.tables.model_size import size_details, size_table
from hf_stages.reports.text import count, duration, part, parts, rate, size

_HEADS = ("stage", "steps", "tokens", "epochs", "LR", "params", "trained", "FLOPs", "on disk", "time")


def plan_table(
    plan: Plan,
    *,
    model: Any = None,
    data: Mapping[str, str] | None = None,
    seconds: Mapping[str, float] | None = None,
    width: int = 100,
) -> str:
    """Write a row of numbers for each stage and, indented below it, its parts.

    ``model`` is a skeleton on the meta device: with it, transforms are replayed (see
    ``hf_stages.planning.model_shapes``) and parameters, FLOPs, bytes and, where stages quantize, bits are known.
    ``data`` gives each stage's data a name, ``seconds`` are a probe's estimates.
    """
    shapes = stage_shapes(Recipe([planned.stage for planned in plan.stages]), model) if model is not None else {}
    initial = shape_of(model) if model is not None else None
    rows = [_row(planned, plan, shapes, seconds) for planned in plan.stages]
    total = _total(plan, shapes, seconds)
    shown = [i for i in range(len(_HEADS)) if i == 0 or any(row[i] != "-" for row in rows)]
    table = [[row[i] for i in shown] for row in (_HEADS, *rows, total)]
    widths = [max(len(row[column]) for row in table) for column in range(len(shown))]
    widths[0] = max(min(widths[0], width - sum(widths[1:]) - 2 * (len(widths) - 1)), 8)
    head, *body, last = [_lines(row, widths) for row in table]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [*head, rule]
    for row, planned in zip(body, plan.stages, strict=True):
        sizes = size_details(planned.name, planned.parent, shapes, initial)
        lines += [*row, *_details(planned, plan, (data or {}).get(planned.name), sizes, width)]
    lines += [rule, *last, *size_table(plan, shapes, width), *_notes(plan, shapes, seconds, width)]
    return "\n".join(line.rstrip() for line in lines)


def plan_dict(
    plan: Plan,
    shapes: Mapping[str, StageShape],
    seconds: Mapping[str, float] | None = None,
    initial: StageShape | None = None,
) -> dict[str, Any]:
    """Return the same numbers as plain data, for programs."""
    began = initial.stored.weights if initial is not None and initial.stored is not None else None
    stages = []
    for planned in plan.stages:
        shape = shapes.get(planned.name)
        stages.append(
            {
                "index": planned.index,
                "name": planned.name,
                "folder": planned.folder,
                "parent": planned.parent,
                "first_step": planned.first_step,
                "steps": planned.steps,
                "exact": planned.exact,
                "tokens": planned.tokens,
                "epochs": epochs_of(planned),
                "lr": {"in": planned.lr_in, "peak": peak_lr(plan, planned), "out": planned.lr_out},
                "params": shape and shape.params,
                "trainable": shape and shape.trainable,
                "flops_estimate": flops_of(planned, shapes),
                "checkpoint_bytes": shape and shape.bytes,
                "size": shape.stored.to_dict(began) if shape is not None and shape.stored is not None else None,
                "sources": source_facts(planned),
                "losses": list(planned.teaching.losses) if planned.teaching else None,
                "teacher": planned.teaching and planned.teaching.teacher,
                "teacher_reach": planned.teaching and (planned.teaching.reach or None),
                "seconds_estimate": (seconds or {}).get(planned.name),
            }
        )
    return {"schema": 1, "total_steps": plan.total_steps, "stages": stages}


def epochs_of(planned: PlannedStage) -> float | None:
    """Return how often a stage reads its data; None for a stream."""
    each = planned.size.updates_per_epoch
    return planned.steps / each if each else None


def peak_lr(plan: Plan, planned: PlannedStage) -> float:
    """Return the highest planned learning rate of a stage, which may lie between its ends."""
    return plan.peak_lr(planned.name)


def flops_of(planned: PlannedStage, shapes: Mapping[str, StageShape]) -> float | None:
    """Estimate FLOPs (arXiv 2001.08361): 2 per token and weight forward, 2 back through it, 2 for its gradient.

    So it is 6 where all weights are trained and about 4 with LoRA; each further cycle of a recurrent core counts again,
    as 2 where no gradient flows through it. Attention scores, and a teacher given as a model, are not counted.
    """
    shape, tokens = shapes.get(planned.name), planned.tokens
    if shape is None or tokens is None:
        return None
    flops = tokens * (4 * shape.non_embedding + 2 * min(shape.trainable, shape.non_embedding) + shape.loops.training)
    if other := shapes.get(teaching_stage(planned.stage.teacher) or ""):
        flops += tokens * (2 * other.non_embedding + other.loops.forward)
    return flops


def _row(
    planned: PlannedStage, plan: Plan, shapes: Mapping[str, StageShape], seconds: Mapping[str, float] | None
) -> list[str]:
    shape, epochs = shapes.get(planned.name), epochs_of(planned)
    return [
        f"{planned.index} {planned.name}",
        count(planned.steps, exact=planned.exact),
        count(planned.tokens, exact=not planned.exact),
        "-" if epochs is None else f"{'' if planned.exact else '~'}{epochs:.3g}",
        _rates(plan, planned),
        count(shape.params if shape else None),
        count(shape.trainable if shape else None),
        count(flops_of(planned, shapes)),
        size(shape.bytes if shape else None),
        duration((seconds or {}).get(planned.name)),
    ]


def _rates(plan: Plan, planned: PlannedStage) -> str:
    edges = [rate(planned.lr_in), rate(peak_lr(plan, planned)), rate(planned.lr_out)]
    return " -> ".join(text for i, text in enumerate(edges) if i == 0 or text != edges[i - 1])


def _total(plan: Plan, shapes: Mapping[str, StageShape], seconds: Mapping[str, float] | None) -> list[str]:
    exact = all(planned.exact for planned in plan.stages)
    tokens = [planned.tokens for planned in plan.stages]
    flops = [flops_of(planned, shapes) for planned in plan.stages]
    known = [shapes[planned.name].bytes for planned in plan.stages if planned.name in shapes]
    times = [(seconds or {}).get(planned.name) for planned in plan.stages]
    return [
        "total",
        count(plan.total_steps, exact=exact),
        count(_sum(tokens), exact=False),
        *[""] * 4,
        count(_sum(flops)),
        size(_sum(known) if len(known) == len(plan.stages) else None),
        duration(_sum(times)),
    ]


def _sum(values: list[Any]) -> float | None:
    return None if None in values else sum(values)


def _lines(row: list[str], widths: list[int]) -> list[str]:
    """Return one line, or two where the name leaves no room for the numbers."""
    cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    if len(row[0]) <= widths[0]:
        return ["  ".join([row[0].ljust(widths[0]), *cells])]
    return [row[0], "  ".join([" " * widths[0], *cells])]


def _details(
    planned: PlannedStage, plan: Plan, data: str | None, sizes: Iterable[tuple[str, str]], width: int
) -> Iterator[str]:
    stage, sized = planned.stage, planned.size
    before = plan.stages[planned.index - 2].name if planned.index > 1 else None
    if planned.parent != before:
        yield from _detail("from", planned.parent or "the initial model", width)
    yield from _detail("data", _data(sized, data), width)
    if (text := sources_text(planned)) is not None:
        yield from _detail("drawn", text, width)
    taught = planned.teaching
    if taught is not None and taught.teacher is not None:
        yield from _detail("loss", " · ".join(taught.losses), width)
        yield from _detail("teacher", ", ".join(filter(None, [taught.teacher, taught.reach])), width)
    else:
        yield from _detail("loss", part(stage.loss) if stage.loss is not None else "the model's own", width)
        if stage.teacher is not None:
            teacher = teaching_stage(stage.teacher)
            yield from _detail("teacher", f"stage {teacher}" if teacher else part(stage.teacher), width)
    if stage.transforms:
        yield from _detail("becomes", parts(stage.transforms), width)
    for label, text in sizes:
        yield from _detail(label, text, width)
    if stage.monitors:
        yield from _detail("watches", parts(stage.monitors), width)
    if stage.gates:
        yield from _detail("gates", parts(stage.gates), width)
    exports = [*(["packed"] if stage.pack_on_save else []), *([parts(stage.exporters)] if stage.exporters else [])]
    if exports:
        yield from _detail("exports", ", ".join(exports), width)
    if stage.schedule is not None:
        yield from _detail("schedule", part(stage.schedule), width)


def _data(sized: Any, label: str | None) -> str:
    amount = "a stream" if sized.examples is None else f"{sized.examples:,} examples"
    batch = f"{sized.global_batch} per update"
    factors = [("batch", sized.batch), ("accumulated", sized.accumulation), ("ranks", sized.world)]
    if sized.accumulation * sized.world > 1:
        batch += " = " + " x ".join(f"{n} {word}" for word, n in factors if n > 1 or word == "batch")
    return ", ".join(text for text in (label, amount, batch) if text)


def _detail(label: str, text: str, width: int) -> list[str]:
    lead = f"    {label:<9}"
    hang = " " * len(lead)
    return textwrap.wrap(text, width, initial_indent=lead, subsequent_indent=hang, max_lines=3, placeholder=" ...")


def _notes(
    plan: Plan, shapes: Mapping[str, StageShape], seconds: Mapping[str, float] | None, width: int
) -> Iterator[str]:
    notes = list(data_notes(plan))
    notes += [f"{name}: {text}." for name, texts in cautions(plan).items() for text in texts]
    if any(not planned.exact for planned in plan.stages):
        notes.append("~ is an estimate: a cap in tokens is counted while training.")
    if shapes and any(flops_of(planned, shapes) is not None for planned in plan.stages):
        notes.append("FLOPs are an estimate (6 per token and trained weight, 4 where it is frozen).")
        if any(p.stage.teacher is not None and not isinstance(p.stage.teacher, str) for p in plan.stages):
            notes.append("A teacher's FLOPs are not in them.")
    if shapes:
        quantized = any(shape.stored is not None and shape.stored.quantized for shape in shapes.values())
        held = "weights, latent and effective ones," if quantized else "weights"
        notes.append(f"On disk: {held} and two fp32 moments per trained one.")
        if quantized:
            notes.append("Packed: everything the model stores; scales, and what is not quantized, in fp16.")
    if shapes and len(shapes) < len(plan.stages):
        missing = ", ".join(planned.name for planned in plan.stages if planned.name not in shapes)
        notes.append(f"No parameter counts for {missing}: a transform there reads weights, which are not loaded yet.")
    if seconds:
        notes.append(
            "Time is an estimate from a few steps with random weights, without losses' teachers and evaluation."
        )
    if plan.resolved is not None and (told := plan.resolved.recipe.notify):
        notes.append(f"What gates decide is told to {parts(told)}.")
    for note in notes:
        yield from textwrap.wrap(note, width)
