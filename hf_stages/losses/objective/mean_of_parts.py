"""Compute the loss of an evaluation where a model's loss is several means, each over items of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hf_stages.losses.objective.loss_calls import Call, LossCalls
from hf_stages.models.reduction import Reduction


class MeanOfParts:
    """Sum up each part and its items over one evaluation. What the model adds to the parts is averaged over rows.

    Args:
        reduction: The parts of the model's loss.
        like: A tensor on the device, of the dtype to sum in.
    """

    def __init__(self, reduction: Reduction, like: torch.Tensor) -> None:
        self.reduction = reduction
        self.totals = like.new_zeros(len(reduction.counts) + 1, 2)
        """The sum and the items of each part; last the sum over rows of what the model adds, and the rows."""

    def watching(self, values: dict[int, torch.Tensor]) -> LossCalls:
        """Watch one forward, and put the value of each call into ``values`` by the number of the call."""

        def answer(place: int, call: Call) -> torch.Tensor:
            found = call.value()
            values[place] = found.detach().clone()  # models add to their loss in place
            return found

        return LossCalls(answer)

    def add(self, loss: torch.Tensor, values: Mapping[int, torch.Tensor], batch: Mapping[str, Any]) -> None:
        """Add one batch: its loss, and the values that ``watching`` noted."""
        split, rest = self.reduction, loss.detach().mean().to(self.totals)
        for place, (call, count, weight, items) in enumerate(
            zip(split.calls, split.counts, split.weights, split.items_by_part(batch), strict=True)
        ):
            if call not in values:  # a head whose targets this batch lacks
                continue
            items = torch.as_tensor(items).to(self.totals)
            value = values[call].detach().mean().to(self.totals)
            rest = rest - weight * value
            value = torch.where(items > 0, value * (1 if count is None else items), torch.zeros_like(items))
            self.totals[place] += torch.stack([value, items])
        rows = torch.as_tensor(split.items(batch)).to(self.totals)
        self.totals[-1] += torch.stack([torch.nan_to_num(rest) * rows, rows])

    def mean(self) -> tuple[float, float] | None:
        """Return the loss and its rows, or None where nothing counted. The totals must be summed over ranks before."""
        *parts, (rest, rows) = self.totals.tolist()
        weighed = zip(self.reduction.weights, parts, strict=True)
        found = [weight * value / items for weight, (value, items) in weighed if items]
        return (sum(found) + rest / rows, rows) if found and rows else None
