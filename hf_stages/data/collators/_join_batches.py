"""Joins padded batches of different collators into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from hf_stages.data.collators.base import IGNORED, padding_value


class Part(NamedTuple):
    """The batch that one collator made of the rows at ``places``."""

    name: str
    places: Sequence[int]
    batch: Mapping[str, Any]


def join_batches(where: str, parts: Sequence[Part], pad: int, *, left: bool = False) -> dict[str, torch.Tensor]:
    """Make one batch with the rows in their old places, every part padded to the widest.

    >>> one = Part("a", [1], {"input_ids": torch.tensor([[5, 6]])})
    >>> two = Part("b", [0], {"input_ids": torch.tensor([[7]])})
    >>> {key: value.tolist() for key, value in join_batches("", [one, two], 0).items()}
    {'input_ids': [[7, 0], [5, 6]], 'attention_mask': [[1, 0], [1, 1]]}
    """
    batches = [_check_part(where, part) for part in parts]
    _check_same_keys(where, parts, batches)
    width = max(batch["input_ids"].shape[1] for batch in batches)
    back = torch.tensor([place for part in parts for place in part.places]).argsort()
    found = {}
    for key in batches[0]:
        values = [_pad_to_width(key, batch, width, pad, left) for batch in batches]
        if len({value.shape[1:] for value in values}) > 1:
            shapes = ", ".join(f"{tuple(v.shape)} of {p.name!r}" for v, p in zip(values, parts, strict=True))
            raise ValueError(f"{where}: {key}: cannot stand in one batch: {shapes}")
        found[key] = torch.cat(values)[back]
    return found


def _check_part(where: str, part: Part) -> dict[str, torch.Tensor]:
    """Return the part's batch with an attention_mask; refuse it unless it has one row of tokens for each row given."""
    batch, here = dict(part.batch), f"{where}: {part.name!r}"
    ids: Any = batch.get("input_ids")
    if not torch.is_tensor(ids) or ids.dim() != 2:
        raise ValueError(f"{here}: expected a collator that gives input_ids of (rows, tokens), it gave {sorted(batch)}")
    if len(ids) != len(part.places):
        raise ValueError(
            f"{here}: its collator makes {len(ids)} rows of {len(part.places)}; expected one that makes one row of "
            "each: what packs or splits goes around, as in Packed(2048, BySource({...}))"
        )
    batch.setdefault("attention_mask", torch.ones_like(ids))
    for key, value in batch.items():
        if not torch.is_tensor(value) or not value.dim() or len(value) != len(ids):
            raise ValueError(f"{here}: {key}: expected a tensor with an entry for each row, got {type(value).__name__}")
    if batch["attention_mask"].shape != ids.shape:
        raise ValueError(
            f"{here}: attention_mask: expected one of (rows, tokens), got {tuple(batch['attention_mask'].shape)}; a "
            "collator that packs goes around: Packed(2048, BySource({...}))"
        )
    return batch


def _check_same_keys(where: str, parts: Sequence[Part], batches: Sequence[Mapping[str, Any]]) -> None:
    for part, batch in zip(parts[1:], batches[1:], strict=True):
        if apart := sorted(batches[0].keys() ^ batch.keys()):
            name, other = (part.name, parts[0].name) if apart[0] in batch else (parts[0].name, part.name)
            raise ValueError(
                f"{where}: {apart[0]}: made of rows of {name!r} and not of those of {other!r}, which stand in the same "
                "batch; let both collators give it, or neither"
            )


def _pad_to_width(key: str, batch: Mapping[str, torch.Tensor], width: int, pad: int, left: bool) -> torch.Tensor:
    value, ids = batch[key], batch["input_ids"]
    if value.shape[:2] != ids.shape or ids.shape[1] == width:
        return value
    fill = IGNORED if key.endswith("labels") else padding_value(key, pad)
    more = value.new_full((len(ids), width - ids.shape[1], *value.shape[2:]), fill)
    return torch.cat([more, value] if left else [value, more], dim=1)
