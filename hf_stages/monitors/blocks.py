"""Weights grouped by the block of the model that they are in, and squared norms of each group in few kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hf_stages.layers.blocks import base_of, stacks_of
from hf_stages.monitors.ranks import sum_over_ranks


class WeightsByBlock:
    """The trained weights of a model, each with the number of its block.

    Blocks are counted from 1, through all stacks; 0 is everything outside of blocks. ``names`` are ``1``, ``2``, ...;
    with several stacks ``encoder_1``, ``decoder_1``, ...
    """

    def __init__(self, model: Any, *, sharded: bool = False) -> None:
        self.sharded = sharded
        self.names: list[str] = []
        group_of: dict[int, int] = {}
        for stack, (_, blocks) in stacks_of(base_of(model)).items():
            for number, block in enumerate(blocks, start=1):
                self.names.append(f"{stack}_{number}" if stack else str(number))
                for weight in block.parameters():
                    group_of.setdefault(id(weight), len(self.names))
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        device = self.weights[0].device if self.weights else torch.device("cpu")
        self.groups = torch.tensor([group_of.get(id(weight), 0) for weight in self.weights], device=device)

    def squares(self, tensors: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Return the sum of squares of each group, of one tensor (or None) for each weight. The groups' first is 0."""
        sums = torch.zeros(len(self.names) + 1, device=self.groups.device)
        places = [i for i, tensor in enumerate(tensors) if tensor is not None and tensor.numel()]
        if places:
            held = [local(tensors[i]) for i in places]
            norms = torch.stack([norm.float() for norm in torch._foreach_norm(held)])
            sums.index_add_(0, self.groups[places] if len(places) < len(tensors) else self.groups, norms.square())
        return sum_over_ranks(sums) if self.sharded else sums


def local(tensor: Any) -> torch.Tensor:
    """Return this rank's part of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
