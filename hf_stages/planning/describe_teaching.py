"""Descriptions of what a stage learns: its loss terms with layers and weights, its teacher, how far that runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from hf_stages.core.parts import arguments_of, is_part
from hf_stages.core.references import teaching_stage
from hf_stages.losses.objective.terms import Term, teacher_needs_of
from hf_stages.models.capture import WHOLE, deepest
from hf_stages.models.model_source import ModelSource
from hf_stages.planning.plan import Teaching
from hf_stages.teachers.declared import CachedTeacher, Teacher
from hf_stages.teachers.live import BASE

_SHOWN = 10
"""The most layer pairs that are listed one by one."""
_ALWAYS = {"temperature": "T={}", "direction": "{}"}
"""Arguments of a divergence that are shown even where they are the default."""


def describe_teaching(terms: Sequence[Term], teacher: Any) -> Teaching:
    """Describe terms that know their models (``adapted_terms``); ``teacher`` is as declared, None without one."""
    if teacher is None or not any(term.loss.uses_teacher for term in terms):
        return Teaching(tuple(map(_term, terms)))
    return Teaching(tuple(map(_term, terms)), _teacher(teacher), _reach(teacher_needs_of(terms)))


def _term(term: Term) -> str:
    loss: Any = getattr(term.loss, "inner", term.loss)  # of one source
    details = [_ALWAYS[key].format(_short(getattr(loss, key))) for key in _ALWAYS if hasattr(loss, key)]
    hidden = {*_ALWAYS, *(("layers",) if getattr(loss, "pairs", ()) else ())}
    own = arguments_of(loss) if is_part(loss) and loss.uses_teacher else ()
    details += [f"{key}={_short(value)}" for key, value in own if key not in hidden and value is not None]
    details += ["balanced"] if term.balance is not None else []
    return " ".join([term.name, *_pairs(getattr(loss, "pairs", ())), *details, *_weight(term)])


def _pairs(pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Write layer pairs; many that follow one stride are shortened.

    >>> _pairs([(0, 0), (1, 2)]), _pairs([(i, 2 * i) for i in range(25)])
    (['0-0', '1-2'], ['0-0', '1-2', '..', '24-48'])
    """
    named = [f"{s}-{t}" for s, t in pairs]
    strides = {(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(pairs)}
    return [*named[:2], "..", named[-1]] if len(named) > _SHOWN and len(strides) == 1 else named


def _weight(term: Term) -> list[str]:
    ends = [f"{term.weight(t):.3g}" for t in (0.0, 0.5, 1.0)]
    if len(set(ends)) == 1:
        return [] if ends[0] == "1" else [f"(x{ends[0]})"]
    return [f"(x{ends[0]} -> {ends[2]})"]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _teacher(teacher: Any) -> str:
    if (earlier := teaching_stage(teacher)) is not None:
        return f"stage {earlier}"
    if isinstance(teacher, str):
        return "the student's own base, adapters off" if teacher == BASE else teacher
    if isinstance(teacher, ModelSource):
        return teacher.path or f"{(teacher.config or {}).get('model_type')} with random weights"
    if isinstance(teacher, CachedTeacher):
        return f"{type(teacher.model).__name__}, cached in {teacher.folder}"
    if isinstance(teacher, Teacher):
        bits = teacher.load_in or teacher.dtype
        return f"{_teacher(teacher.model)}{f' in {bits}' if bits else ''}"
    if isinstance(teacher, nn.Module):
        path = getattr(teacher, "name_or_path", "")
        return f"{type(teacher).__name__}{f' {path}' if path else ''}"
    return type(teacher).__name__


def _reach(needs: frozenset[str]) -> str:
    if needs & (WHOLE | {"final"}):
        return "runs whole"
    if not needs:
        return ""
    places = sorted(deepest(needs), key=lambda place: place[0] == "decoder")
    ends = [f"{f'{stack} ' if stack else ''}block {layer}" for stack, layer in places if layer]
    return f"runs to {' and '.join(ends)}, no head" if ends else "runs to its embeddings"
