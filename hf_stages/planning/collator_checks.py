"""Collators against a recipe's data and teachers, before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_stages.core.stage import Recipe, Stage
from hf_stages.data.collators.base import BaseCollator, nested_collators
from hf_stages.data.collators.by_source import BySource
from hf_stages.data.curricula.base import source_names_in
from hf_stages.data.drawing.blend import Blend
from hf_stages.data.stage_collator import build_for_stage, find_packed
from hf_stages.planning.domains import domains_of
from hf_stages.planning.measure_data import train_dataset_of
from hf_stages.teachers.cache_reader import CacheReader


def check_collators(recipe: Recipe, processing_class: Any) -> None:
    """What a collator lacks, and names that no source has, found before the first stage begins."""
    for stage in recipe.stages:
        own = stage.data_collator if stage.data_collator is not None else recipe.data_collator
        if isinstance(own, BaseCollator):
            where = f"stage {stage.name!r}: "
            build_for_stage(own, processing_class, None, where)
            _check_names(recipe, stage, own, where)


def _check_names(recipe: Recipe, stage: Stage, collator: Any, where: str) -> None:
    """Of ``BySource``. A plain dataset may have a column of names that nobody knows before reading it."""
    by_source = next((one for one in nested_collators(collator) if isinstance(one, BySource)), None)
    if by_source is None:
        return
    if not isinstance(train_dataset_of(recipe, stage), Blend) and not isinstance(stage.train_dataset, str):
        return
    shared = recipe.train_dataset if isinstance(recipe.train_dataset, Mapping) else {}
    known = {*recipe.sources, *shared, *domains_of(recipe)}
    for other in recipe.stages:
        data = train_dataset_of(recipe, other)
        known.update(data.names if isinstance(data, Blend) else source_names_in(other.train_dataset))
    if unknown := [name for name in by_source.collators if name not in known]:
        raise ValueError(
            f"{where}data_collator: BySource: no source is called {unknown[0]!r}; there are {', '.join(sorted(known))}"
        )


def check_teacher(collator: Any, teacher: Any, where: str) -> None:
    """Packed rows: the teacher keeps their examples apart as the student does, and is not looked up by the row."""
    packed = find_packed(collator)
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
