"""What a task's loss is a mean over, as far as a batch alone tells: the means in it, and how many items each has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from hf_stages.models.real_tokens import rows_of

IGNORED = -100


@dataclass(frozen=True)
class Count:
    """The items of one mean: the entries of a target that count, or rows."""

    key: str | None = None
    """The target in the batch; None: rows."""
    shift: bool = False
    """Whether the first position is no target."""
    ignore: int | None = None
    """The entry that does not count; None: all do."""
    inside: bool = False
    """Whether entries are positions, of which those count that lie within the batch's tokens."""
    weights: tuple[float, ...] | None = None
    """By class, where items weigh differently."""

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        if self.key is None:
            return rows_of(batch)
        target: Any = batch.get(self.key)
        if self.shift and batch.get("shift_labels") is not None:
            target = batch["shift_labels"]
        elif target is None:
            raise ValueError(
                f"TaskLoss: a batch has no {self.key!r}, over which the loss of the first batch ran (it has {', '.join(batch)}); give "
                "all batches of a stage the same targets"
            )
        elif self.shift:
            target = target[..., 1:]
        if self.inside:
            return target.clamp(min=0).lt(token_width(batch)).sum()
        if self.ignore is None:
            return target.numel()
        kept = target.ne(self.ignore)
        if self.weights is None:
            return kept.sum()
        return torch.tensor(self.weights, device=target.device)[target[kept].long()].sum()


@dataclass(frozen=True)
class Reduction:
    """A loss as found: a weighted sum of means, each over items of its own, and of sums."""

    counts: tuple[Count | None, ...]
    """Of each part; None: a sum over the batch, which nothing divides."""
    weights: tuple[float, ...] = (1.0,)
    calls: tuple[int, ...] = ()
    """Which of the loss functions that the forward calls gives each part."""
    adds: bool = False
    """Whether the model adds something of its own to them (a router's loss)."""
    called: int = 0
    """How many loss functions the forward called in all."""

    @property
    def summed(self) -> bool:
        return self.counts == (None,)

    @property
    def split(self) -> bool:
        """Whether its parts run over different items, so that no one number divides them."""
        return len(self.counts) > 1

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Over what the whole of it is a mean; of parts that differ rows, as far as anything counts in them."""
        if not self.split:
            return self.items_by_part(batch)[0] if self.counts[0] is not None else rows_of(batch)
        rows = rows_of(batch)
        return torch.as_tensor(rows * any(bool(n > 0) for n in self.items_by_part(batch)))

    def items_by_part(self, batch: Mapping[str, Any]) -> list[Any]:
        """The items of each part in a batch; of a sum rows."""
        return [rows_of(batch) if count is None else count(batch) for count in self.counts]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Reduction:
        counts = tuple(None if given is None else _count(given) for given in state["counts"])
        return cls(counts, tuple(state["weights"]), tuple(state["calls"]), state["adds"], state.get("called", 0))


def _count(given: Mapping[str, Any]) -> Count:
    weights = given["weights"]
    return replace(Count(**given), weights=None if weights is None else tuple(weights))


def token_width(batch: Mapping[str, Any]) -> int | None:
    """How many tokens wide a batch is; None where it holds none."""
    for key in ("input_ids", "inputs_embeds", "bbox"):
        if torch.is_tensor(batch.get(key)):
            return batch[key].shape[1]
    return None
