"""Identifies a row of a batch by what the teacher would see of it, whatever its neighbours and its padding are.

A key is a checksum (xxh3, 128 bits) of the row's inputs without padding and without labels. So a cache finds a row in
any order and in any batch, and does not find it if its tokens, its masking or its pixels differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash

from hf_stages.models.model_inputs import model_inputs

TOKENS, DECODER, ROWS = "tokens", "decoder", "rows"
"""Frames: a signal has a value for each of the row's tokens, for each of its decoder's tokens, or for the row."""
_MASKS = {TOKENS: "attention_mask", DECODER: "decoder_attention_mask"}
_IDS = {TOKENS: ("input_ids", "inputs_embeds"), DECODER: ("decoder_input_ids", "decoder_inputs_embeds")}


@dataclass(frozen=True)
class BatchRows:
    """The rows of one batch, with their keys and where their tokens stand."""

    keys: np.ndarray
    """(rows, 2): two halves of 64 bits."""
    spans: Mapping[str, np.ndarray]
    """For each frame (rows, 2): where a row's tokens begin and end between its padding."""
    sizes: Mapping[str, int]
    """For each frame the tokens of the batch, padding included."""
    names: tuple[str, ...]
    """The inputs that the key is made from."""
    device: torch.device

    def __len__(self) -> int:
        return len(self.keys)


def rows_of_batch(model: Any, batch: Mapping[str, Any]) -> BatchRows:
    """Return keys and frames of a batch as ``model`` takes it; a skeleton is enough.

    Each input is copied to the CPU once.
    """
    inputs = {key: v for key, v in model_inputs(model, batch).items() if torch.is_tensor(v) and v.dim()}
    if not inputs:
        raise ValueError(
            f"the batch holds nothing that {type(model).__name__} takes, only "
            f"{', '.join(map(str, batch)) or 'nothing'}; check the data collator"
        )
    count = next(iter(inputs.values())).shape[0]
    for key, value in inputs.items():
        if value.shape[0] != count:
            raise ValueError(
                f"{key} has {value.shape[0]} entries for a batch of {count} rows, so no row can be told from the "
                "others; such inputs (packed images) need a live teacher"
            )
    arrays = {key: _as_array(value) for key, value in inputs.items()}
    spans, sizes = _frames(model, arrays, batch)
    fields = []
    for name in sorted(arrays):
        frame = _frame_of(name, arrays[name], sizes)
        if name not in _MASKS.values() or frame is None or _has_holes(arrays[name], spans[frame]):
            fields.append((name, arrays[name], frame))
    keys = np.array([_key(fields, spans, row) for row in range(count)], dtype=np.uint64).reshape(count, 2)
    device = next(iter(inputs.values())).device
    return BatchRows(keys, spans, sizes, tuple(n for n in sorted(arrays) if n not in _MASKS.values()), device)


def _as_array(value: torch.Tensor) -> np.ndarray:
    value = value.detach().cpu()
    if not value.is_floating_point():
        return np.ascontiguousarray(value.to(torch.int64).numpy())
    return np.ascontiguousarray((value.float() if value.dtype == torch.bfloat16 else value).numpy())


def _frames(
    model: Any, arrays: Mapping[str, np.ndarray], batch: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    spans, sizes = {}, {}
    for frame, names in _IDS.items():
        ids = next((arrays[name] for name in names if name in arrays), None)
        if ids is None or ids.ndim not in (2, 3) or (ids.ndim == 3 and ids.dtype.kind != "f"):
            continue
        mask = arrays.get(_MASKS[frame])
        seen = mask != 0 if mask is not None and mask.shape == ids.shape[:2] else None
        if frame == DECODER and seen is None:
            seen = _decoder_tokens_seen(model, ids, batch)
        spans[frame], sizes[frame] = _span(seen, *ids.shape[:2]), ids.shape[1]
    return spans, sizes


def _decoder_tokens_seen(model: Any, ids: np.ndarray, batch: Mapping[str, Any]) -> np.ndarray | None:
    """Return which decoder tokens are real.

    Decoders rarely have a mask, so labels tell, or else the padding at the end.
    """
    labels: Any = batch.get("labels")
    if torch.is_tensor(labels) and tuple(labels.shape) == ids.shape[:2] and not labels.is_floating_point():
        seen = (labels != -100).cpu().numpy()
    elif (pad := getattr(getattr(model, "config", None), "pad_token_id", None)) is not None and ids.ndim == 2:
        seen = ids != pad
    else:
        return None
    seen[:, 0] = True  # the start token may be the padding token (T5)
    return seen


def _span(seen: np.ndarray | None, rows: int, tokens: int) -> np.ndarray:
    """Return the first token that is seen, and one past the last.

    Everything between is the row, also where it is masked.
    """
    if seen is None:
        return np.tile(np.array([0, tokens]), (rows, 1))
    any_seen = seen.any(1)
    first = np.where(any_seen, seen.argmax(1), 0)
    last = np.where(any_seen, tokens - seen[:, ::-1].argmax(1), 0)
    return np.stack([first, last], 1)


def _frame_of(name: str, array: np.ndarray, sizes: Mapping[str, int]) -> str | None:
    frame = DECODER if name.startswith("decoder_") else TOKENS
    return frame if array.ndim >= 2 and sizes.get(frame) == array.shape[1] else None


def _has_holes(mask: np.ndarray, span: np.ndarray) -> bool:
    return bool(((mask != 0).sum(1) != span[:, 1] - span[:, 0]).any())


def _key(fields: list[tuple[str, np.ndarray, str | None]], spans: Mapping[str, np.ndarray], row: int) -> list[int]:
    digest = xxhash.xxh3_128()
    for name, array, frame in fields:
        part = array[row]
        if frame is not None:
            start, end = spans[frame][row]
            part = part[start:end]
            if name in _MASKS.values() and part.all():
                continue  # another row's mask has holes, this one has none
        if name == "token_type_ids" and not part.any():
            continue  # a model uses zeros where none are given
        digest.update(f"{name}{part.shape}{part.dtype}".encode())
        digest.update(part)
    number = digest.intdigest()
    return [number >> 64, number & 0xFFFFFFFFFFFFFFFF]
