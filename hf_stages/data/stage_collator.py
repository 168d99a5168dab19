"""Prepares a stage's collator: it gets the tokenizer and the model, and the progress of each batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hf_stages.core.placed_errors import place_errors
from hf_stages.data.collators.base import BaseCollator, nested_collators
from hf_stages.data.collators.packed import Packed
from hf_stages.data.collators.progress import AtProgress
from hf_stages.data.source_column import SourceCollator


def prepare_collator(collator: Any, processing_class: Any, model: Any, where: str = "") -> Any:
    """Return the collator ready for one stage. Collators from elsewhere stay unchanged."""
    if isinstance(collator, SourceCollator):
        return replace(collator, inner=prepare_collator(collator.inner, processing_class, model, where))
    declared = collator.declared if isinstance(collator, AtProgress) else collator
    if not isinstance(declared, BaseCollator):
        return collator
    return AtProgress(build_for_stage(declared, processing_class, model, where), declared)


def for_source(collator: Any, name: str) -> Any:
    """Return the collator for rows of one source that do not say so: a stage on one source, an evaluation set."""
    if isinstance(collator, SourceCollator):
        return replace(collator, inner=for_source(collator.inner, name))
    if isinstance(collator, AtProgress):
        return AtProgress(for_source(collator.collator, name), for_source(collator.declared, name))
    return collator.for_source(name) if isinstance(collator, BaseCollator) else collator


def reads_progress(collator: Any) -> bool:
    return isinstance(collator, AtProgress) or isinstance(getattr(collator, "inner", None), AtProgress)


def find_packed(collator: Any) -> Packed | None:
    """Return the ``Packed`` collator, at any depth; None where there is none."""
    return next((one for one in nested_collators(collator) if isinstance(one, Packed)), None)


def build_for_stage(collator: BaseCollator, processing_class: Any, model: Any, where: str) -> Any:
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    with place_errors(f"{where}data_collator"):
        return collator.build(tokenizer, model)
