"""Taking rows and columns out of a model's projections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_stages.transforms._width_parts import Attention, FeedForward


@dataclass(frozen=True)
class Cut:
    """The inputs or the outputs of a projection that stay. T5's table of biases has heads for outputs."""

    inputs: torch.Tensor | None = None
    outputs: torch.Tensor | None = None

    def shape(self, module: Any, leaf: str) -> tuple[int, ...]:
        """Return the shape of one of the module's tensors after the cut."""
        shape, dim = list(module._parameters[leaf].shape), self._dim(module, leaf)
        if dim is not None:
            shape[dim] = len(self._kept)
        return tuple(shape)

    def apply(self, module: Any) -> None:
        """Cut the parameters; their names, devices and ``requires_grad`` stay."""
        for leaf, old in list(module._parameters.items()):
            dim = self._dim(module, leaf)
            if old is None or dim is None:
                continue
            kept = old.detach().index_select(dim, self._kept.to(old.device))
            module._parameters[leaf] = nn.Parameter(kept, requires_grad=old.requires_grad)
        given = {nn.Linear: ("in_features", "out_features"), Conv1D: ("nx", "nf"), nn.Embedding: ("", "embedding_dim")}
        setattr(module, given[type(module)][self.inputs is None], len(self._kept))

    @property
    def _kept(self) -> torch.Tensor:
        kept = self.outputs if self.inputs is None else self.inputs
        assert kept is not None
        return kept

    def _dim(self, module: Any, leaf: str) -> int | None:
        """Return the dimension that is cut; None for the bias where a projection's inputs are."""
        if leaf == "bias":
            return 0 if self.inputs is None else None
        by_rows = isinstance(module, nn.Linear)  # (outputs, inputs); Conv1D and tables: (inputs, outputs)
        return int((self.inputs is None) != by_rows)


def cut_attention(one: Attention, size: int, heads: torch.Tensor, groups: torch.Tensor) -> dict[str, Cut]:
    """Return each projection's cut: what belongs to the heads that stay, and to their heads of keys and values."""
    outputs: dict[str, list[torch.Tensor]] = {}
    for part, kept in ((one.query, heads), (one.key, groups), (one.value, groups)):
        outputs.setdefault(part.name, []).append(part.start + _rows_of_heads(kept, size))
    cuts = {name: Cut(outputs=torch.cat(kept)) for name, kept in outputs.items()}
    cuts[one.out] = Cut(inputs=_rows_of_heads(heads, size))
    if one.bias is not None:
        cuts[one.bias] = Cut(outputs=heads)
    return cuts


def cut_neurons(part: FeedForward, kept: torch.Tensor) -> dict[str, Cut]:
    return {**{name: Cut(outputs=kept) for name in part.into}, part.out: Cut(inputs=kept)}


def shapes_after(model: nn.Module, cuts: Mapping[str, Cut]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the whole state dict after the cuts."""
    shapes = {}
    for name, tensor in model.state_dict().items():
        place, _, leaf = name.rpartition(".")
        shapes[name] = cuts[place].shape(model.get_submodule(place), leaf) if place in cuts else tuple(tensor.shape)
    return shapes


def refuse_shared(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse a projection that several places share: it would be cut for one of them."""
    wanted = {id(p) for name in names for p in model.get_submodule(name).parameters()}
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = seen.setdefault(id(parameter), name)
        if first != name and id(parameter) in wanted:
            raise ValueError(f"{first} is also {name}: weights that several places share are not reduced")


def _rows_of_heads(kept: torch.Tensor, size: int) -> torch.Tensor:
    """Return the rows that belong to heads of that size.

    >>> _rows_of_heads(torch.tensor([0, 2]), 3)
    tensor([0, 1, 2, 6, 7, 8])
    """
    return (kept[:, None] * size + torch.arange(size)).flatten()
