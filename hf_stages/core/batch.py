"""What of a batch is for the losses alone: columns that only the teacher reads, where a row comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_stages.data.source_collator import DRAWN, SourceCollator
from hf_stages.losses.objective.by_source import SOURCE
from hf_stages.models.model_inputs import columns_of


def for_teacher(student: Any, teacher: Any) -> frozenset[str]:
    """Columns that the teacher's forward takes and the student's does not (token types, for a DistilBERT that learns from BERT).

    What the student takes stays the student's, whatever columns the trainer keeps of a dataset: collators make masks and positions.
    """
    return columns_of(teacher.model) - columns_of(student) if teacher is not None else frozenset()


def parted(trainer: Any, inputs: Any) -> tuple[Any, Mapping[str, Any]]:
    """The student's inputs, and what stands beside them."""
    by_source = {SOURCE, DRAWN} if isinstance(trainer.data_collator, SourceCollator) else frozenset()
    if not (apart := trainer._for_teacher | by_source):
        return inputs, trainer._beside
    inputs = dict(inputs)
    return inputs, {key: inputs.pop(key) for key in apart & inputs.keys()}
