"""A declared teacher as a structure, and at work."""

from __future__ import annotations

from typing import Any

import torch

from hf_stages.teachers.cache_reader import CacheReader, check_needs
from hf_stages.teachers.declared import CachedTeacher, Teacher
from hf_stages.teachers.live import BASE, BaseTeacher, LiveTeacher


def start_teacher(source: Any, student: Any, needs: frozenset[str], device: torch.device) -> Any:
    """Return the teacher that gives a stage's losses their signals; None where there is none."""
    if source is None:
        return None
    if isinstance(source, CachedTeacher):
        check_needs(source, needs)
        return CacheReader(source, needs)
    return BaseTeacher(student, needs) if source == BASE else LiveTeacher(source, needs, device)


def teacher_structure(source: Any, student: Any, *, trust_remote_code: bool = False) -> Any:
    """Return a model of the teacher's structure, which losses are adapted to: the teacher itself, or its skeleton."""
    if isinstance(source, Teacher):
        return source.skeleton(student, trust_remote_code=trust_remote_code)
    if isinstance(source, CachedTeacher):
        return source.model
    return student if source == BASE else source
