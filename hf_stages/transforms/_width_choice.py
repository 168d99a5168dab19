"""How many heads and neurons stay, and which: those with the largest weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_stages.transforms._width_parts import Attention, FeedForward, Rows


def count_neurons(neurons: int, fraction: float) -> int:
    """Return the nearest whole number, halves upwards, at least one.

    >>> count_neurons(3072, 0.5), count_neurons(5, 0.5), count_neurons(5, 0.01)
    (1536, 3, 1)
    """
    return max(1, int(neurons * fraction + 0.5))


def count_heads(heads: int, groups: int, fraction: float) -> tuple[int, int]:
    """Return how many query heads and key heads stay. Every key head must serve as many queries as the others.

    Either whole groups are removed, or equally many queries of each group, whichever comes nearest to the fraction.
    Where both come equally near, whole groups are, because their keys and values go too; and the larger number stays.

    >>> [count_heads(*numbers) for numbers in ((12, 12, 0.5), (5, 5, 0.5), (32, 8, 0.5), (8, 1, 0.5), (12, 2, 0.75))]
    [(6, 6), (3, 3), (16, 4), (4, 1), (10, 2)]
    """
    each = heads // groups
    whole = [(number * each, number) for number in range(groups, 0, -1)]
    part = [(number * groups, groups) for number in range(each, 0, -1)]
    return min([*whole, *part], key=lambda kept: abs(kept[0] - fraction * heads))


def choose_neurons(model: nn.Module, part: FeedForward, kept: int, importance: str) -> torch.Tensor:
    """Choose the neurons that stay, in their order."""
    first = model.get_submodule(part.out).weight
    if importance == "first" or first.is_meta:
        return torch.arange(kept)
    return _largest(_neuron_importance(model, part), kept)


def choose_heads(
    model: nn.Module, together: Sequence[Attention], size: int, kept: tuple[int, int], importance: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the query heads and key heads that stay, in their order: the same in all attentions of ``together``."""
    heads, groups = together[0].query.heads, together[0].key.heads
    each = heads // groups
    if importance == "first" or model.get_submodule(together[0].out).weight.is_meta:
        scores = torch.arange(heads, 0, -1.0)
    else:
        scores = torch.stack([_head_importance(model, one, size) for one in together]).sum(0)
    by_group = scores.view(groups, each)
    if kept[1] < groups:
        chosen = _largest(by_group.sum(1), kept[1])
        return (chosen[:, None] * each + torch.arange(each)).flatten(), chosen
    within = torch.stack([_largest(row, kept[0] // groups) for row in by_group])
    return (torch.arange(groups)[:, None] * each + within).flatten(), torch.arange(groups)


# ---- importance -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def _neuron_importance(model: nn.Module, part: FeedForward) -> torch.Tensor:
    norms = _rows(model.get_submodule(part.out)).norm(dim=0)
    for name in part.into:
        norms = norms * _rows(model.get_submodule(name)).norm(dim=1)
    return norms.cpu()


@torch.no_grad()
def _head_importance(model: nn.Module, one: Attention, size: int) -> torch.Tensor:
    """Return the importance of each query head, with the heads of keys and values that it reads."""
    each = one.query.heads // one.key.heads
    query, key, value = (_norms(model, part, size) for part in (one.query, one.key, one.value))
    out = _rows(model.get_submodule(one.out)).T.reshape(one.query.heads, -1).norm(dim=1)
    return (query * out * (key * value).repeat_interleave(each)).cpu()


def _norms(model: nn.Module, part: Rows, size: int) -> torch.Tensor:
    rows = _rows(model.get_submodule(part.name))[part.start : part.start + part.heads * size]
    return rows.reshape(part.heads, -1).norm(dim=1)


def _rows(module: Any) -> torch.Tensor:
    """Return the weight as (outputs, inputs), in fp32."""
    weight = module.weight.float()
    return weight.T.contiguous() if isinstance(module, Conv1D) else weight


def _largest(scores: torch.Tensor, kept: int) -> torch.Tensor:
    """Return places of the largest scores. Of equal ones the first count, so that all ranks choose the same."""
    return torch.sort(scores, descending=True, stable=True).indices[:kept].sort().values
