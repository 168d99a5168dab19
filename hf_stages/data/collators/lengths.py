"""Limits the length of examples, which may grow over the stage, and pads batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from hf_stages.core.curves import Curve
from hf_stages.data.collators.base import (
    LONGER,
    BaseCollator,
    check_choice,
    check_length,
    cut_to_length,
    pad_batch,
    read_curve,
    read_documents,
    refuse_pairs,
    value_at,
)


@dataclass(frozen=True)
class Lengths(BaseCollator):
    """Cuts examples to ``length`` tokens, which may grow over the stage, and pads a batch no wider than needed.

    Short sequences first make early updates cheaper and large learning rates more stable (arXiv 2108.06084).
    ``truncate`` loses what is cut off; ``split`` keeps it as more rows of the batch.

    >>> Lengths(4, steps_of=2)([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}])["input_ids"].tolist()
    [[5, 6, 7, 0], [8, 0, 0, 0]]
    """

    length: int | Curve
    """The most tokens of an example: a number, or a curve over the stage's progress, which is rounded."""
    collator: Any = None
    """Another collator that makes the batch. None: rows hold ``input_ids`` (and ``labels``)."""
    longer: Literal["error", "split", "truncate"] = "truncate"
    """What happens to a longer example: an error, more rows, or its end is cut off."""
    steps_of: int = 1
    """Lengths and widths are multiples of this number: fewer shapes to compile for, and 8 suits tensor cores."""
    widths: tuple[int, ...] = ()
    """The only widths that batches are padded to, each to the smallest that holds it. So there are few shapes."""
    tokenizer: Any = None
    """Gives the padding token and side. None: the trainer's."""

    def __post_init__(self) -> None:
        read_curve(self, "length")
        check_length("Lengths", self.length)
        check_choice("Lengths", "longer", self.longer, LONGER)
        if self.longer != "error":  # a pair's answers stand at its end
            refuse_pairs(f"Lengths(longer={self.longer!r})", self.collator)
        if isinstance(self.steps_of, bool) or not isinstance(self.steps_of, int) or self.steps_of < 1:
            raise ValueError(f"Lengths: steps_of: expected a whole number of at least 1, got {self.steps_of!r}")
        object.__setattr__(self, "widths", tuple(sorted(self.widths)))
        if not all(isinstance(width, int) and width > 0 for width in self.widths):
            raise ValueError(f"Lengths: widths: expected whole numbers of tokens, got {list(self.widths)}")

    def __call__(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        found, apart = read_documents("Lengths", rows, self.collator)
        length = value_at(self.length, None, whole=True)
        length = max(length // self.steps_of, 1) * self.steps_of
        runs = [run for document in found for run in cut_to_length("Lengths", document, length, self.longer)]
        if len(runs) < len(found) and (apart or not runs):
            raise ValueError("Lengths: an example without a single token; drop empty examples")
        if len(runs) > len(found) and apart:
            raise ValueError(
                f"Lengths: longer: expected 'truncate' or 'error' where {', '.join(apart)} is one per example, got "
                "'split'"
            )
        width = self._width(max(len(run["input_ids"]) for run in runs))
        return {**pad_batch(runs, self.tokenizer, width), **apart}

    def _width(self, longest: int) -> int:
        for width in self.widths:
            if width >= longest:
                return width
        if self.widths:
            raise ValueError(
                f"Lengths: widths: expected one that holds {longest} tokens, got {list(self.widths)}; add one, or "
                "lower length"
            )
        return -(-longest // self.steps_of) * self.steps_of
