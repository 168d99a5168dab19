"""Which heads and neurons stay: how many, and which weigh most by the weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_stages.transforms._width_parts import Attention, FeedForward, Rows


def neurons_kept(neurons: int, fraction: float) -> int:
    """The nearest whole number, halves upwards, at least one.

    >>> neurons_kept(3072, 0.5), neurons_kept(5, 0.5), neurons_kept(5, 0.01)
    (1536, 3, 1)
    """
    return max(1, int(neurons * fraction + 0.5))


def heads_kept(heads: int, groups: int, fraction: float) -> tuple[int, int]:
    """Query heads and key heads that stay: every key head must go on serving as many queries as the others.

    Whole groups go, or equally many queries of each: whichever comes nearest to the fraction; at a draw whole groups,
    which take their keys and values with them, and the larger number.

    >>> heads_kept(12, 12, 0.5), heads_kept(5, 5, 0.5), heads_kept(32, 8, 0.5), heads_kept(8, 1, 0.5), heads_kept(12, 2, 0.75)
    ((6, 6), (3, 3), (16, 4), (4, 1), (10, 2))
    """
    each = heads // groups
    whole = [(number * each, number) for number in range(groups, 0, -1)]
    part = [(number * groups, groups) for number in range(each, 0, -1)]
    return min([*whole, *part], key=lambda kept: abs(kept[0] - fraction * heads))


def neurons_chosen(model: nn.Module, part: FeedForward, kept: int, importance: str) -> torch.Tensor:
    """The neurons that stay, in their order."""
    first = model.get_submodule(part.out).weight
    if importance == "first" or first.is_meta:
        return torch.arange(kept)
    return _largest(_neuron_importance(model, part), kept)


def heads_chosen(
    model: nn.Module, together: Sequence[Attention], size: int, kept: tuple[int, int], importance: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The query heads and the key heads that stay, in their order: the same in all attentions of ``together``."""
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
    """Each query head's, with the heads of keys and values that it reads."""
    each = one.query.heads // one.key.heads
    query, key, value = (_norms(model, part, size) for part in (one.query, one.key, one.value))
    out = _rows(model.get_submodule(one.out)).T.reshape(one.query.heads, -1).norm(dim=1)
    return (query * out * (key * value).repeat_interleave(each)).cpu()


def _norms(model: nn.Module, part: Rows, size: int) -> torch.Tensor:
    rows = _rows(model.get_submodule(part.name))[part.start : part.start + part.heads * size]
    return rows.reshape(part.heads, -1).norm(dim=1)


def _rows(module: Any) -> torch.Tensor:
    """(outputs, inputs) in fp32."""
    weight = module.weight.float()
    return weight.T.contiguous() if isinstance(module, Conv1D) else weight


def _largest(scores: torch.Tensor, kept: int) -> torch.Tensor:
    """Equal ones: the first of them, so that a resumed run and all ranks choose alike."""
    return torch.sort(scores, descending=True, stable=True).indices[:kept].sort().values
