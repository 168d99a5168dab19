"""Which tokens of a micro-batch count in losses over hidden states and attention: real ones, each once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def token_items(batch: Mapping[str, Any], stack: str | None) -> Any:
    """How many tokens count; rows where the batch does not say (images: every row has as many patches)."""
    mask = _mask(batch, stack)
    if mask is not None:
        return mask.sum()
    shape = _token_shape(batch, stack)
    return shape[0] * shape[1] if shape is not None else rows_of(batch)


def token_weights(batch: Mapping[str, Any], like: torch.Tensor, stack: str | None) -> torch.Tensor:
    """(batch, tokens) for states ``like`` (batch, tokens, ...), summing up to ``token_items``."""
    rows, tokens = like.shape[:2]
    mask = _mask(batch, stack)
    if mask is not None:
        if tuple(mask.shape) != (rows, tokens):
            raise ValueError(
                f"the batch masks {tuple(mask.shape)} tokens, but the model has states of {(rows, tokens)}: a model that "
                "shortens or lengthens its input (speech, prompt tuning) is not supported by this loss"
            )
        return mask.to(torch.float32)
    share = 1.0 if _token_shape(batch, stack) is not None else 1.0 / tokens
    return torch.full((rows, tokens), share, device=like.device)


def _mask(batch: Mapping[str, Any], stack: str | None) -> torch.Tensor | None:
    if stack == "decoder":
        mask: Any = batch.get("decoder_attention_mask")
        labels: Any = batch.get("labels")
        if mask is None and torch.is_tensor(labels) and labels.dim() == 2 and not labels.is_floating_point():
            return labels.ne(-100)
    else:
        return real_tokens(batch)
    return mask.ne(0) if torch.is_tensor(mask) and mask.dim() == 2 else None


def real_tokens(batch: Mapping[str, Any]) -> torch.Tensor | None:
    """(rows, tokens): what is no padding; None where the batch does not say.

    Packed rows say it without a mask of two dimensions, which would tell the model that they are one sequence: in a mask of
    four, padding does not see itself; in positions alone, it neither goes on nor begins anew.
    """
    mask: Any
    ids: Any
    positions: Any
    mask, ids, positions = (batch.get(key) for key in ("attention_mask", "input_ids", "position_ids"))
    if torch.is_tensor(mask):
        if mask.dim() == 4 and mask.shape[-1] == mask.shape[-2]:
            own = mask[:, 0].diagonal(dim1=-2, dim2=-1)
            if own.dtype == torch.bool:
                return own
            return None if bool(own.gt(0).any()) else own.eq(0)  # added to scores, or of a kind that is not known
        return mask.ne(0) if mask.dim() == 2 else None
    if mask is not None or not torch.is_tensor(positions) or positions.shape != getattr(ids, "shape", None):
        return None
    real = torch.ones_like(positions, dtype=torch.bool)
    real[:, 1:] = positions[:, 1:].eq(0) | positions.diff(dim=-1).eq(1)
    return real


def together(batch: Mapping[str, Any], stack: str | None) -> torch.Tensor | None:
    """(rows, tokens, tokens): which real tokens are of one example; None where the batch does not say.

    Rows of one example each say no more than their padding; packed ones tell their examples apart as ``real_tokens`` has it.
    """
    real = _mask(batch, stack)
    if real is None:
        return None
    both = real[:, :, None] & real[:, None, :]
    mask: Any = batch.get("attention_mask")
    if stack is None and torch.is_tensor(mask) and mask.dim() == 4:
        sees = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0].eq(0)
        return both & (sees | sees.transpose(1, 2))  # a causal mask shows half of it
    goes_on = before_next(batch) if stack is None and mask is None else None
    if goes_on is None:
        return both
    number = torch.nn.functional.pad((~goes_on).cumsum(-1), (1, 0))
    return both & number[:, :, None].eq(number[:, None, :])


def before_next(batch: Mapping[str, Any]) -> torch.Tensor | None:
    """(rows, tokens - 1): whether the next token goes on with the same example; None where no positions say so."""
    positions: Any = batch.get("position_ids")
    return positions.diff(dim=-1).eq(1) if torch.is_tensor(positions) and positions.dim() == 2 else None


def _token_shape(batch: Mapping[str, Any], stack: str | None) -> tuple[int, int] | None:
    for key in ("decoder_input_ids", "decoder_inputs_embeds") if stack == "decoder" else ("input_ids", "inputs_embeds"):
        if torch.is_tensor(batch.get(key)):
            return batch[key].shape[0], batch[key].shape[1]
    return None


def rows_of(batch: Mapping[str, Any]) -> int:
    """How many examples a micro-batch holds."""
    for value in batch.values():
        if torch.is_tensor(value) and value.dim() > 0:
            return value.shape[0]
    raise ValueError(f"the batch holds no tensor to count rows of, only {sorted(batch)}; check the data collator")
