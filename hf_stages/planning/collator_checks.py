"""Checks of collators against a recipe's data and teachers, before the first step."""

from __future__ import annotations

from typing import Any

from hf_stages.core.placed_errors import place_errors
from hf_stages.core.references import source_names_in
from hf_stages.data.collators.base import BaseCollator, nested_collators
from hf_stages.data.collators.by_source import BySource
from hf_stages.data.stage_collator import build_for_stage, find_packed
from hf_stages.planning.domains import domains_of
from hf_stages.planning.resolved import ResolvedRecipe, ResolvedStage
from hf_stages.teachers.cache_reader import CacheReader


def check_collators(resolved: ResolvedRecipe, processing_class: Any) -> None:
    """Find what a collator lacks, and names that no source has, before the first stage begins."""
    for stage in resolved:
        if isinstance(stage.data_collator, BaseCollator):
            where = f"stage {stage.name!r}: "
            build_for_stage(stage.data_collator, processing_class, None, where)
            _check_names(resolved, stage, where)


def _check_names(resolved: ResolvedRecipe, stage: ResolvedStage, where: str) -> None:
    """Check the names of ``BySource``. A plain dataset may have a column of names, which only reading it would tell."""
    by_source = next((one for one in nested_collators(stage.data_collator) if isinstance(one, BySource)), None)
    if by_source is None:
        return
    if not stage.mixes and not isinstance(stage.stage.train_dataset, str):
        return
    known = {*resolved.sources, *domains_of(resolved)}
    for other in resolved:
        known.update(other.dataset.names if other.mixes else source_names_in(other.stage.train_dataset))
    if unknown := [name for name in by_source.collators if name not in known]:
        raise ValueError(
            f"{where}data_collator: BySource: no source is called {unknown[0]!r}; there are {', '.join(sorted(known))}"
        )


def check_teacher(collator: Any, teacher: Any, where: str) -> None:
    """Check that a teacher can read packed rows: it keeps their examples apart, and is no cache of single rows."""
    packed = find_packed(collator)
    if packed is None or teacher is None:
        return
    if isinstance(teacher, CacheReader):
        raise ValueError(
            f"{where}data_collator: Packed puts other examples into a row each time, and a cached teacher is looked up "
            "by the row; use the teacher itself, or pad"
        )
    with place_errors(f"{where}teacher"):
        packed.check_teacher(teacher.model)
