"""Writes how many bits a model's weights take, in a line and by part."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_stages.planning.model_shapes import StageShape
from hf_stages.planning.plan import Plan
from hf_stages.reports.text import bits, count, mebibytes

_HEADS = ("packed", "weights", "bits", "MiB")
_FULL = "full"


def size_details(
    name: str, parent: str | None, shapes: Mapping[str, StageShape], initial: StageShape | None
) -> Iterator[tuple[str, str]]:
    """Yield lines on the bits of a quantized stage; the parts only where they differ from the stage before."""
    stored = shapes[name].stored if name in shapes else None
    if stored is None or not stored.quantized:
        return
    before = shapes.get(parent) if parent is not None else initial
    if before is None or before.stored is None or _levels(before.stored) != _levels(stored):
        yield "bits", "; ".join(_levels(stored))
    text = f"{bits(stored.bits_per_weight)} bits per weight, {mebibytes(stored.bytes)}: 1/{stored.ratio():.3g} of fp32"
    if initial is not None and initial.stored is not None and initial.stored.weights != stored.weights:
        ratio, size = stored.ratio(initial.stored.weights), mebibytes(initial.stored.fp32_bytes)
        text += f", 1/{ratio:.3g} of the initial model in fp32 ({size})"
    yield "packed", f"{text}; {mebibytes(stored.bytes_rest_fp32)} with the rest in fp32"


def size_table(plan: Plan, shapes: Mapping[str, StageShape], width: int) -> list[str]:
    """Write sizes by part, once for stages of equal size; nothing where no stage is quantized."""
    groups: list[tuple[list[str], Any]] = []
    for planned in plan.stages:
        stored = shapes[planned.name].stored if planned.name in shapes else None
        if stored is None or not stored.quantized:
            continue
        title = f"{planned.index} {planned.name}"
        known = next((titles for titles, other in groups if other == stored), None)
        known.append(title) if known is not None else groups.append(([title], stored))
    if not groups:
        return []
    rows = [[_row(name, part) for name, part in [*stored.parts.items(), ("all", stored.total)]] for _, stored in groups]
    every = [_HEADS, *(row for group in rows for row in group)]
    widths = [max(len(row[column]) for row in every) for column in range(len(_HEADS))]
    lines = ["", _line(_HEADS, widths)]
    for (titles, _), group in zip(groups, rows, strict=True):
        lines += [*textwrap.wrap(", ".join(titles), width), *(_line(row, widths) for row in group)]
    return lines


def _levels(stored: Any) -> list[str]:
    """Return lines that say which parts are stored in how many bits.

    >>> from hf_stages.layers import BinaryLinear, stored_size
    >>> _levels(stored_size(BinaryLinear(4, 2)))
    ['1-bit: other layers', 'full: norms and biases']
    """
    labels = dict.fromkeys(label for part in stored.parts.values() for label in part.tensors)
    lines = []
    for label in sorted(labels, key=lambda label: (label == _FULL, label)):
        found = []
        for name, part in stored.parts.items():
            if number := part.tensors.get(label, 0):
                counted = len(part.tensors) > 1 or (number > 1 and label != _FULL)
                found.append(f"{name} ({number})" if counted else name)
        lines.append(f"{label}: {', '.join(found)}")
    return lines


def _row(name: str, part: Any) -> tuple[str, ...]:
    return f"  {name}", count(part.weights), bits(part.bits_per_weight), mebibytes(part.bytes()).removesuffix(" MiB")


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
