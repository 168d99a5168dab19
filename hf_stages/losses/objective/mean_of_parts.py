"""The loss of an evaluation where a model's loss is several means, each over items of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hf_stages.losses.objective.loss_calls import Call, LossCalls
from hf_stages.models.reduction import Reduction


class MeanOfParts:
    """Sums and items of each part over one evaluation; what the model adds to them goes by rows."""

    def __init__(self, reduction: Reduction, like: torch.Tensor) -> None:
        self.reduction = reduction
        self.totals = like.new_zeros(len(reduction.counts) + 1, 2)
        """Of each part its sum and its items; of the rest its sum over rows, and rows."""

    def watching(self, values: dict[int, torch.Tensor]) -> LossCalls:
        """Around one forward, whose parts are noted by the place of their call."""

        def answer(place: int, call: Call) -> torch.Tensor:
            found = call.value()
            values[place] = found.detach().clone()  # models add to their loss in place
            return found

        return LossCalls(answer)

    def add(self, loss: torch.Tensor, values: Mapping[int, torch.Tensor], batch: Mapping[str, Any]) -> None:
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
        """The loss and its rows; None where nothing counted. Of totals that are summed over ranks."""
        *parts, (rest, rows) = self.totals.tolist()
        weighed = zip(self.reduction.weights, parts, strict=True)
        found = [weight * value / items for weight, (value, items) in weighed if items]
        return (sum(found) + rest / rows, rows) if found and rows else None
