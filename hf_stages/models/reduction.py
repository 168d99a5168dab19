"""What a model's own loss is a mean over: the means in it, and how many items each has in a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from hf_stages.models.real_tokens import rows_of

IGNORED = -100


@dataclass(frozen=True)
class Count:
    """How the items of one mean are counted: the entries of a target that count, or rows."""

    key: str | None = None
    """The target's key in the batch; None counts rows."""
    shift: bool = False
    """Whether the first position is no target."""
    ignore: int | None = None
    """The value of entries that do not count; None: all count."""
    inside: bool = False
    """Whether entries are positions; only those within the batch's tokens count."""
    weights: tuple[float, ...] | None = None
    """The weight of each class, where items have different weights."""

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        if self.key is None:
            return rows_of(batch)
        target: Any = batch.get(self.key)
        if self.shift and batch.get("shift_labels") is not None:
            target = batch["shift_labels"]
        elif target is None:
            raise ValueError(
                f"TaskLoss: a batch has no {self.key!r}, over which the loss of the first batch ran (it has "
                f"{', '.join(batch)}); give "
                "all batches of a stage the same targets"
            )
        elif self.shift:
            target = target[..., 1:]
        if self.inside:
            return target.clamp(min=0).lt(token_width(batch)).sum()
        if self.ignore is None:
            return target.numel()
        counted = target.ne(self.ignore)
        if self.weights is None:
            return counted.sum()
        return torch.tensor(self.weights, device=target.device)[target[counted].long()].sum()


@dataclass(frozen=True)
class Reduction:
    """What was found of a loss: a weighted sum of means, each over its own items, and of sums."""

    counts: tuple[Count | None, ...]
    """How each part's items are counted; None: a sum over the batch, which is not divided."""
    weights: tuple[float, ...] = (1.0,)
    """The weight of each part."""
    calls: tuple[int, ...] = ()
    """Which of the loss functions that the forward calls computes each part, by its index."""
    adds: bool = False
    """Whether the model adds something to them (a router's loss)."""
    called: int = 0
    """How many loss functions the forward called in all."""

    @property
    def summed(self) -> bool:
        """Whether it is one sum, which is not divided."""
        return self.counts == (None,)

    @property
    def split(self) -> bool:
        """Whether its parts are means over different items, so that no single number divides them."""
        return len(self.counts) > 1

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Count the items that the loss is a mean over; of several parts, the rows, or 0 where no part has items."""
        if not self.split:
            return self.items_by_part(batch)[0] if self.counts[0] is not None else rows_of(batch)
        rows = rows_of(batch)
        return torch.as_tensor(rows * any(bool(n > 0) for n in self.items_by_part(batch)))

    def items_by_part(self, batch: Mapping[str, Any]) -> list[Any]:
        """Count the items of each part in a batch; a sum counts rows."""
        return [rows_of(batch) if count is None else count(batch) for count in self.counts]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Reduction:
        counts = tuple(None if given is None else _read_count(given) for given in state["counts"])
        return cls(counts, tuple(state["weights"]), tuple(state["calls"]), state["adds"], state.get("called", 0))


def _read_count(given: Mapping[str, Any]) -> Count:
    weights = given["weights"]
    return replace(Count(**given), weights=None if weights is None else tuple(weights))


def token_width(batch: Mapping[str, Any]) -> int | None:
    """Return the number of token positions in a batch; None where it holds no tokens."""
    for key in ("input_ids", "inputs_embeds", "bbox"):
        if torch.is_tensor(batch.get(key)):
            return batch[key].shape[1]
    return None
