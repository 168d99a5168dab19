"""A stage's collator at work: it meets the tokenizer and the model, and learns how far the batch at hand is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_stages.cached_teacher import CacheReader
from hf_stages.data._collating import Collating
from hf_stages.data._progress import AtProgress
from hf_stages.data.packed import Packed
from hf_stages.source_collator import SourceCollator
from hf_stages.stage import Stage


def collator_at_work(collator: Any, processing_class: Any, model: Any, where: str = "") -> Any:
    """The collator for one stage. Those that are not ours stay as they are."""
    if isinstance(collator, SourceCollator):
        return replace(collator, inner=collator_at_work(collator.inner, processing_class, model, where))
    declared = collator.declared if isinstance(collator, AtProgress) else collator
    if not isinstance(declared, Collating):
        return collator
    return AtProgress(_built(declared, processing_class, model, where), declared)


def reads_progress(collator: Any) -> bool:
    return isinstance(collator, AtProgress) or isinstance(getattr(collator, "inner", None), AtProgress)


def check_collators(stages: Sequence[Stage], common: Any, processing_class: Any) -> None:
    """What a collator lacks, found before the first stage begins."""
    asked: Mapping[str, Any] = {f"stage {stage.name!r}: ": stage.data_collator for stage in stages}
    for where, collator in asked.items():
        own = collator if collator is not None else common
        if isinstance(own, Collating):
            _built(own, processing_class, None, where)


def check_teacher(collator: Any, teacher: Any, where: str) -> None:
    """Packed rows: the teacher keeps their examples apart as the student does, and is not looked up by the row."""
    while not isinstance(collator, Packed | None):
        collator = getattr(collator, "inner", getattr(collator, "collator", None))
    if collator is None or teacher is None:
        return
    if isinstance(teacher, CacheReader):
        raise ValueError(
            f"{where}data_collator: Packed puts other examples into a row each time, and a cached teacher is looked up by the row; use the "
            "teacher itself, or pad"
        )
    try:
        collator.check_teacher(teacher.model)
    except ValueError as error:
        raise ValueError(f"{where}teacher: {error}") from error


def _built(collator: Collating, processing_class: Any, model: Any, where: str) -> Any:
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    try:
        return collator.build(tokenizer, model)
    except ValueError as error:
        raise ValueError(f"{where}data_collator: {error}") from error
