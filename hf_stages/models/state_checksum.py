"""Whether a model is still the one that was measured: a cheap number of all that its outputs depend on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import xxhash

_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers of as many bytes: their sum is exact, and one bit that changes changes it."""


def state_checksum(model: Any, leave_out: str = "") -> str:
    """Over weights, buffers, and the numbers and tensors that modules hold as plain attributes (a strength, a scale).

    ``leave_out`` names a child of the model that is no part of it. Nothing is copied off the device but a number for each
    tensor. Two tensors of one sum are told apart by nothing else: this is for a model and itself a moment later.
    """
    digest, tensors = xxhash.xxh3_128(), []
    for path, module in model.named_modules():
        if leave_out and path.split(".")[0] == leave_out:
            continue
        plain = []
        held = {**module._parameters, **module._buffers}
        for name, value in {**vars(module), **held}.items():
            if name.startswith("_forward") or name in ("training", "_parameters", "_buffers", "_modules"):
                continue
            if torch.is_tensor(value):
                tensors += _plain(value)
                plain.append((name, str(value.dtype), tuple(value.shape)))
            elif (said := _said(value)) is not None:
                plain.append((name, *said))
        digest.update(f"{path} {type(module).__qualname__} {sorted(plain)}".encode())
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        digest.update(json.dumps(config.to_dict(), sort_keys=True, default=str).encode())
    digest.update(json.dumps(list(_sums(tensors))).encode())
    return digest.hexdigest()


def _said(value: Any) -> tuple[str, Any] | None:
    """A plain value as text; None for what is no number, text or collection of these."""
    if value is None or isinstance(value, bool | int | float | str):
        return type(value).__name__, repr(value)
    if isinstance(value, Mapping):
        parts = [(str(key), _said(one)) for key, one in value.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = [("", _said(one)) for one in value]
    else:
        return None
    return type(value).__name__, repr(
        sorted(parts, key=repr) if isinstance(value, Mapping | set | frozenset) else parts
    )


def _plain(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that this one consists of: this rank's shard, what a library has packed."""
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if hasattr(tensor, "__tensor_flatten__"):
        return [part for name in tensor.__tensor_flatten__()[0] for part in _plain(getattr(tensor, name))]
    return [tensor]


def _sums(tensors: list[torch.Tensor]) -> Iterator[list[int]]:
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors:
        if tensor.is_meta or tensor.layout != torch.strided:
            continue
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        whole = tensor.contiguous().reshape(-1).view(_WHOLE[tensor.element_size()])
        by_device.setdefault(tensor.device, []).append(whole.sum(dtype=torch.int64))
    for sums in by_device.values():
        yield torch.stack(sums).tolist()
