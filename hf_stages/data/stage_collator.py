"""A stage's collator at work: it meets the tokenizer and the model, and learns how far the batch at hand is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hf_stages.core.stage import Recipe, Stage
from hf_stages.data.collators.base import Collating, nested
from hf_stages.data.collators.by_source import BySource
from hf_stages.data.collators.packed import Packed
from hf_stages.data.collators.progress import AtProgress
from hf_stages.data.curricula.base import names_in
from hf_stages.data.drawing.blend import Blend
from hf_stages.data.source_collator import SourceCollator
from hf_stages.planning.domains import domains_of
from hf_stages.planning.measure_data import train_dataset_of
from hf_stages.teachers.cache_reader import CacheReader


def collator_at_work(collator: Any, processing_class: Any, model: Any, where: str = "") -> Any:
    """The collator for one stage. Those that are not ours stay as they are."""
    if isinstance(collator, SourceCollator):
        return replace(collator, inner=collator_at_work(collator.inner, processing_class, model, where))
    declared = collator.declared if isinstance(collator, AtProgress) else collator
    if not isinstance(declared, Collating):
        return collator
    return AtProgress(_built(declared, processing_class, model, where), declared)


def for_source(collator: Any, name: str) -> Any:
    """The collator where rows that name no source are of this one: a stage's on one source, an evaluation set's."""
    if isinstance(collator, SourceCollator):
        return replace(collator, inner=for_source(collator.inner, name))
    if isinstance(collator, AtProgress):
        return AtProgress(for_source(collator.collator, name), for_source(collator.declared, name))
    return collator.for_source(name) if isinstance(collator, Collating) else collator


def reads_progress(collator: Any) -> bool:
    return isinstance(collator, AtProgress) or isinstance(getattr(collator, "inner", None), AtProgress)


def check_collators(recipe: Recipe, processing_class: Any) -> None:
    """What a collator lacks, and names that no source has, found before the first stage begins."""
    for stage in recipe.stages:
        own = stage.data_collator if stage.data_collator is not None else recipe.data_collator
        if isinstance(own, Collating):
            where = f"stage {stage.name!r}: "
            _built(own, processing_class, None, where)
            _check_names(recipe, stage, own, where)


def _check_names(recipe: Recipe, stage: Stage, collator: Any, where: str) -> None:
    """Of ``BySource``. A plain dataset may have a column of names that nobody knows before reading it."""
    by_source = next((one for one in nested(collator) if isinstance(one, BySource)), None)
    if by_source is None:
        return
    if not isinstance(train_dataset_of(recipe, stage), Blend) and not isinstance(stage.train_dataset, str):
        return
    shared = recipe.train_dataset if isinstance(recipe.train_dataset, Mapping) else {}
    known = {*recipe.sources, *shared, *domains_of(recipe)}
    for other in recipe.stages:
        data = train_dataset_of(recipe, other)
        known.update(data.names if isinstance(data, Blend) else names_in(other.train_dataset))
    if unknown := [name for name in by_source.collators if name not in known]:
        raise ValueError(
            f"{where}data_collator: BySource: no source is called {unknown[0]!r}; there are {', '.join(sorted(known))}"
        )


def packed_in(collator: Any) -> Packed | None:
    """At any depth."""
    return next((one for one in nested(collator) if isinstance(one, Packed)), None)


def check_teacher(collator: Any, teacher: Any, where: str) -> None:
    """Packed rows: the teacher keeps their examples apart as the student does, and is not looked up by the row."""
    packed = packed_in(collator)
    if packed is None or teacher is None:
        return
    if isinstance(teacher, CacheReader):
        raise ValueError(
            f"{where}data_collator: Packed puts other examples into a row each time, and a cached teacher is looked up by the row; use the "
            "teacher itself, or pad"
        )
    try:
        packed.check_teacher(teacher.model)
    except ValueError as error:
        raise ValueError(f"{where}teacher: {error}") from error


def _built(collator: Collating, processing_class: Any, model: Any, where: str) -> Any:
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    try:
        return collator.build(tokenizer, model)
    except ValueError as error:
        raise ValueError(f"{where}data_collator: {error}") from error
