"""One micro-batch, split into what the student's forward takes and what only losses and teachers read.

The split is made and undone here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

SOURCE = "source"
"""The column that names a row's source; in a batch its number among the stage's sources, sorted."""
DRAWN = "drawn"
"""In a batch: the source's number and the tokens of each row that it was made of; taken out again before the update."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch in its parts. It keeps a copy of ``inputs``: a trainer that takes labels out changes nothing here.

    >>> batch = Batch.split({"input_ids": [1], "source": [0], "extra": [7]}, by_source=True, teacher_only={"extra"})
    >>> batch.inputs, batch.columns
    ({'input_ids': [1]}, {'input_ids': [1], 'source': [0], 'extra': [7]})
    """

    inputs: Mapping[str, Any]
    """What the student's forward takes, labels included."""
    sources: Mapping[str, Any] = field(default_factory=dict)
    """Where the rows come from (``SOURCE``, ``DRAWN``)."""
    teacher_only: Mapping[str, Any] = field(default_factory=dict)
    """Columns that the teacher's forward takes and the student's does not."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", dict(self.inputs))

    @classmethod
    def split(cls, columns: Mapping[str, Any], *, by_source: bool = False, teacher_only: Collection[str] = ()) -> Batch:
        """Split collated columns. Without ``by_source`` a column named ``source`` is an input like any other."""
        of_sources = {key: columns[key] for key in (SOURCE, DRAWN) if by_source and key in columns}
        apart = {key: columns[key] for key in teacher_only if key in columns and key not in of_sources}
        inputs = {key: value for key, value in columns.items() if key not in of_sources and key not in apart}
        return cls(inputs, of_sources, apart)

    def with_inputs(self, inputs: Mapping[str, Any]) -> Batch:
        """Return the same batch with these inputs, as a trainer hands them on."""
        return replace(self, inputs=inputs)

    @property
    def is_split(self) -> bool:
        """Whether anything stands beside the inputs."""
        return bool(self.sources or self.teacher_only)

    @cached_property
    def columns(self) -> dict[str, Any]:
        """All columns, as losses and teachers read them."""
        return {**self.inputs, **self.sources, **self.teacher_only}
