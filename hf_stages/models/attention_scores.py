"""Compute attention scores from captured queries and keys. The model itself may run SDPA, which never makes them."""

from __future__ import annotations

import torch

from hf_stages.models.signals import Attention


def scores(attention: Attention, *, minus: torch.Tensor | None = None) -> torch.Tensor:
    """Return scores before the softmax (batch, heads, queries, keys) in fp32. Hidden keys must be masked by
    ``visible``.

    ``minus`` is subtracted in the same multiplication, which saves a pass over the largest tensor of the loss.
    """
    with without_autocast(attention.query):
        return _scores(attention, minus)


def without_autocast(like: torch.Tensor) -> torch.autocast:
    """Switch autocast off: it would compute fp32 products in half precision, and losses are computed within it."""
    return torch.autocast(like.device.type, enabled=False)


def _scores(attention: Attention, minus: torch.Tensor | None) -> torch.Tensor:
    query, key = attention.query.float(), attention.key.float()
    batch, heads, length, size = query.shape
    if key.shape[1] != heads:  # grouped-query attention: each key head serves several queries
        key = key.repeat_interleave(heads // key.shape[1], dim=1)
    plain = attention.softcap is None and attention.bias is None
    shape = (batch, heads, length, key.shape[2])  # a -1 could not be told of a batch without rows (a source's)
    flat_query, flat_key = query.reshape(batch * heads, length, size), key.reshape(batch * heads, shape[-1], size)
    if plain and minus is not None:
        flat = minus.reshape(batch * heads, length, shape[-1])
        return torch.baddbmm(flat, flat_query, flat_key.transpose(1, 2), beta=-1, alpha=attention.scaling).view(shape)
    found = (torch.bmm(flat_query, flat_key.transpose(1, 2)) * attention.scaling).view(shape)
    if attention.softcap is not None:
        found = torch.tanh(found / attention.softcap) * attention.softcap
    if attention.bias is not None:
        found = found + attention.bias.float()
    return found if minus is None else found - minus


def visible(attention: Attention) -> torch.Tensor | None:
    """Tell which keys each query sees, broadcastable to the scores; None where it sees all."""
    mask = attention.mask
    if mask is not None:
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    if not attention.causal:
        return None
    length, keys = attention.query.shape[2], attention.key.shape[2]
    ones = torch.ones(length, keys, dtype=torch.bool, device=attention.query.device)
    return ones.tril(keys - length)


def both_visible(student: Attention, teacher: Attention) -> torch.Tensor | None:
    """Tell which keys both models see. They differ where sliding windows do."""
    first, second = visible(student), visible(teacher)
    if first is None or second is None:
        return first if second is None else second
    return first & second
