"""Map layers of the student to the layers of the teacher that they learn from.

Blocks are numbered from 1, as their outputs are in ``hidden_states``; hidden 0 is what enters the first block.
Negative numbers count from the end: -1 is the last block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_stages.layers.blocks import blocks_of

LayerMap = str | Sequence[int] | Mapping[int, int]
_NAMES = ("uniform", "last", "skip")


def check(layers: Any, where: str) -> None:
    """Refuse what cannot be a layer map of any model."""
    if isinstance(layers, str):
        if layers not in _NAMES:
            raise ValueError(f"{where}: expected {', '.join(_NAMES)}, a list or {{student: teacher}}, got {layers!r}")
        return
    numbers = [*layers.keys(), *layers.values()] if isinstance(layers, Mapping) else list(layers)
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise ValueError(f"{where}: expected layer numbers, got {layers!r}")


def depth_of(model: Any, stack: str | None) -> int:
    return len(blocks_of(model, stack))


def pairs(layers: LayerMap, student: int, teacher: int, *, embeddings: bool, where: str) -> tuple[tuple[int, int], ...]:
    """Return pairs (student layer, teacher layer) for models of these depths.

    ``uniform`` spreads the student over the teacher (TinyBERT), with the embeddings where ``embeddings`` is true.
    ``skip`` is the same without the embeddings and the last layer, which learns from the logits (PKD-skip).
    ``last`` follows the teacher's last layers (PKD-last). A list names the teacher's layer for student layers 1, 2, ...

    >>> pairs("uniform", 3, 6, embeddings=True, where="layers")
    ((0, 0), (1, 2), (2, 4), (3, 6))
    >>> pairs("last", 3, 6, embeddings=False, where="layers"), pairs([1, 6], 2, 6, embeddings=False, where="layers")
    (((1, 4), (2, 5), (3, 6)), ((1, 1), (2, 6)))
    """
    if isinstance(layers, str):
        if student > teacher:
            raise ValueError(
                f"{where}: {layers!r} needs a teacher at least as deep as the student; the student has {student} "
                f"layers, the teacher {teacher}; give {{student: teacher}}"
            )
        found = _pairs_by_name(layers, student, teacher, embeddings)
        if not found:
            raise ValueError(f"{where}: {layers!r} leaves no layer of a student of {student}; use 'uniform' or 'last'")
        return tuple(found)
    chosen = list(layers.items()) if isinstance(layers, Mapping) else list(enumerate(layers, 1))
    if not isinstance(layers, Mapping) and len(chosen) != student:
        raise ValueError(
            f"{where}: expected one teacher layer for each of the student's {student}, got {len(chosen)}; "
            "give {student: teacher} to map some of them"
        )
    lowest = 0 if embeddings else 1
    return tuple(
        (_from_the_end(s, student, lowest, f"{where}: student"), _from_the_end(t, teacher, lowest, f"{where}: teacher"))
        for s, t in chosen
    )


def names_of(pairs: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """Name pairs of layers for errors and the plan: student-teacher."""
    return tuple(f"{student}-{teacher}" for student, teacher in pairs)


def _pairs_by_name(layers: str, student: int, teacher: int, embeddings: bool) -> list[tuple[int, int]]:
    blocks = range(1, student + 1)
    if layers == "last":
        return [(s, teacher - student + s) for s in blocks]
    spread = [(s, (2 * s * teacher + student) // (2 * student)) for s in blocks]  # rounded half up
    if layers == "skip":
        return spread[:-1]
    return [(0, 0), *spread] if embeddings else spread


def _from_the_end(number: int, depth: int, lowest: int, where: str) -> int:
    found = depth + 1 + number if number < 0 else number
    if not lowest <= found <= depth:
        hint = "0 (embeddings) to " if lowest == 0 else "1 to "
        raise ValueError(f"{where} layer {number}: expected {hint}{depth} (or -1 for the last), it has {depth} layers")
    return found
