"""A fast checksum of everything that a model's outputs depend on, to see whether it changed since it was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import xxhash

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer types by their bytes. Sums of integers are exact, and every changed bit changes them."""


def state_checksum(model: Any, leave_out: str = "") -> str:
    """Compute a checksum of weights, buffers, and numbers and tensors in plain attributes (a strength, a scale).

    ``leave_out`` names a child of the model that does not count. Only one number for each tensor is copied off the
    device. Different tensors may have the same sum: the checksum compares a model with itself at a later time, no two
    models.
    """
    digest, tensors = xxhash.xxh3_128(), []
    for path, module in model.named_modules():
        if leave_out and path.split(".")[0] == leave_out:
            continue
        values = []
        held = {**module._parameters, **module._buffers}
        for name, value in {**vars(module), **held}.items():
            if name.startswith("_forward") or name in ("training", "_parameters", "_buffers", "_modules"):
                continue
            if torch.is_tensor(value):
                tensors += _plain_tensors(value)
                values.append((name, str(value.dtype), tuple(value.shape)))
            elif (plain := _plain_value(value)) is not None:
                values.append((name, *plain))
        digest.update(f"{path} {type(module).__qualname__} {sorted(values)}".encode())
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        digest.update(json.dumps(config.to_dict(), sort_keys=True, default=str).encode())
    digest.update(json.dumps(list(_sums(tensors))).encode())
    return digest.hexdigest()


def _plain_value(value: Any) -> tuple[str, Any] | None:
    """Write a number, a text or a collection of these as text; None for anything else."""
    if value is None or isinstance(value, bool | int | float | str):
        return type(value).__name__, repr(value)
    if isinstance(value, Mapping):
        parts = [(str(key), _plain_value(one)) for key, one in value.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = [("", _plain_value(one)) for one in value]
    else:
        return None
    return type(value).__name__, repr(
        sorted(parts, key=repr) if isinstance(value, Mapping | set | frozenset) else parts
    )


def _plain_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors inside a tensor: this rank's shard, or what a library packed."""
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if hasattr(tensor, "__tensor_flatten__"):
        return [part for name in tensor.__tensor_flatten__()[0] for part in _plain_tensors(getattr(tensor, name))]
    return [tensor]


def _sums(tensors: list[torch.Tensor]) -> Iterator[list[int]]:
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors:
        if tensor.is_meta or tensor.layout != torch.strided:
            continue
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        whole = tensor.contiguous().reshape(-1).view(_INTEGERS[tensor.element_size()])
        by_device.setdefault(tensor.device, []).append(whole.sum(dtype=torch.int64))
    for sums in by_device.values():
        yield torch.stack(sums).tolist()
