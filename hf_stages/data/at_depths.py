"""An evaluation set on which a recurrent model is measured at several numbers of cycles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_stages.core.part import resolve_part

_DEPTHS = (1, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class AtDepths:
    """Measures a recurrent model on a dataset at several depths, beside what is measured on any evaluation set.

    Each depth sees the same batches and the same initial state. The log gets ``eval_loss_at_32`` for a depth of 32
    cycles; of a language model also ``eval_ppl_at_32`` and, where bytes are known, ``eval_bits_per_byte_at_32``. Of a
    set called ``prose`` these are ``eval_prose_loss_at_32`` and so on. ``eval_loss`` stays the loss at the depth that
    the model itself evaluates at. Gates read these metrics as any others: ``Below("eval_ppl_at_32", 12)``.

    >>> AtDepths("prose", depths=[8, 1]).depths
    (1, 8)
    """

    dataset: Any
    """A dataset, or the name of one of the recipe's sources."""
    depths: Sequence[int] = _DEPTHS
    """Numbers of cycles of the recurrent part."""

    def __post_init__(self) -> None:
        depths = tuple(self.depths) if isinstance(self.depths, Sequence) and not isinstance(self.depths, str) else ()
        if not depths or any(isinstance(d, bool) or not isinstance(d, int) or d < 1 for d in depths):
            raise ValueError(f"AtDepths: depths: expected whole numbers of at least 1, got {self.depths!r}")
        if len(set(depths)) < len(depths):
            raise ValueError(f"AtDepths: depths: expected each depth once, got {list(depths)}")
        object.__setattr__(self, "depths", tuple(sorted(depths)))
        if self.dataset is None or isinstance(self.dataset, AtDepths) or type(self.dataset) is dict:
            found = "several" if type(self.dataset) is dict else type(self.dataset).__name__
            raise ValueError(
                f"AtDepths: dataset: expected one dataset or the name of a source, got {found}; of several by name "
                "each gets its own: {'prose': AtDepths(...), 'code': AtDepths(...)}"
            )

    needs_stages = True
    """A plain Trainer cannot evaluate on it."""

    def around(self, dataset: Any) -> AtDepths:
        """Return the same depths for another dataset: one that was looked up, loaded or prepared."""
        return self if dataset is self.dataset else replace(self, dataset=dataset)

    def resolve(self, base: str | Path) -> AtDepths:
        return self.around(resolve_part(self.dataset, base))
