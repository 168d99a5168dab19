"""The state of an optimizer by parameter names, so that moments survive a new optimizer, wrapper or structure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

_TENSORS, _META = "optimizer.safetensors", "optimizer.json"
_SEP = "::"


@dataclass(frozen=True)
class Moments:
    """The optimizer state of each parameter, with the parameter's shape."""

    optimizer: str
    """The optimizer's class, with its bits where it has any."""
    state: Mapping[str, Mapping[str, Any]]
    """By the parameter's name, then as the optimizer names it (``exp_avg``)."""
    shapes: Mapping[str, tuple[int, ...]]
    """By the parameter's name."""


@dataclass
class CarriedMoments:
    """What happened to the moments between two stages."""

    carried: list[str] = field(default_factory=list)
    """Names of parameters that keep their moments."""
    reset: dict[str, str] = field(default_factory=dict)
    """Names of parameters whose moments start empty, each with the reason."""


def collect(optimizer: Any, model: nn.Module) -> Moments:
    """Collect the optimizer's state by name, without copies. Where parameters are sharded, every rank must call it."""
    raw = _unwrapped(optimizer)
    names = _names(model)
    state, shapes = {}, {}
    for group in raw.param_groups:
        for parameter in group["params"]:
            name = names.get(id(parameter))
            if name is not None and raw.state.get(parameter):
                state[name] = {key: _whole_on_cpu(value) for key, value in raw.state[parameter].items()}
                shapes[name] = tuple(parameter.shape)
    return Moments(_kind(raw), state, shapes)


def restore(optimizer: Any, model: nn.Module, moments: Moments, moves: Mapping[str, list[str]]) -> CarriedMoments:
    """Put moments into a new optimizer, following ``moves`` from old names to new ones.

    The optimizer owns the tensors afterwards, so ``moments`` must not be used again.
    """
    raw = _unwrapped(optimizer)
    report = CarriedMoments()
    names = _names(model)
    parameters = [p for group in raw.param_groups for p in group["params"]]
    source = {new: old for old, news in moves.items() for new in news}
    shared = {old for old, news in moves.items() if len(news) > 1}
    state: dict[int, dict[str, Any]] = {}
    for index, parameter in enumerate(parameters):
        name = names.get(id(parameter), f"parameter {index}")
        old = source.get(name)
        reason = _mismatch(moments, old, parameter, raw)
        if reason is None:
            own = moments.state[old].items()  # type: ignore[index]
            state[index] = {key: _laid_out_like(value, parameter, copy=old in shared) for key, value in own}
            report.carried.append(name)
        else:
            report.reset[name] = reason
    if state:
        # load_state_dict knows each optimizer's rules for dtype and device (fused Adam's step, 8-bit blocks).
        raw.load_state_dict({"state": state, "param_groups": _indexed_groups(raw)})
    return report


def save(moments: Moments, folder: Path) -> None:
    """Write ``optimizer.safetensors`` and ``optimizer.json``. Reading them runs no code."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    written: set[int] = set()
    plain: dict[str, dict[str, Any]] = {}
    for name, state in moments.state.items():
        for key, value in state.items():
            if torch.is_tensor(value):
                tensor = value.detach().cpu().contiguous()
                # 8-bit optimizers share one quantization map among parameters; safetensors refuses shared memory.
                again = tensor.data_ptr() in written
                written.add(tensor.data_ptr())
                tensors[f"{name}{_SEP}{key}"] = tensor.clone() if again else tensor
            elif isinstance(value, bool | int | float | str | None):
                plain.setdefault(name, {})[key] = value
            else:
                raise ValueError(
                    f"optimizer {moments.optimizer}: the state {key!r} of {name} is a {type(value).__name__}, which "
                    "cannot "
                    'be carried by name; give the next stage an optimizer of its own: schedule=Fresh(optimizer="reset")'
                )
    save_file(tensors, folder / _TENSORS)
    meta = {"optimizer": moments.optimizer, "shapes": {k: list(v) for k, v in moments.shapes.items()}, "plain": plain}
    (folder / _META).write_text(json.dumps(meta), encoding="utf-8")


def load(folder: Path) -> Moments | None:
    """Read what ``save`` wrote; None where the stage stored no optimizer state."""
    if not (folder / _META).is_file():
        return None
    meta = json.loads((folder / _META).read_text(encoding="utf-8"))
    state: dict[str, dict[str, Any]] = {name: dict(values) for name, values in meta["plain"].items()}
    for full, tensor in load_file(folder / _TENSORS).items():
        name, key = full.rsplit(_SEP, 1)
        state.setdefault(name, {})[key] = tensor
    return Moments(meta["optimizer"], state, {name: tuple(shape) for name, shape in meta["shapes"].items()})


def _mismatch(moments: Moments, old: str | None, parameter: torch.Tensor, optimizer: Any) -> str | None:
    if moments.optimizer != _kind(optimizer):
        return f"the optimizer changed from {moments.optimizer} to {_kind(optimizer)}"
    if old is None or old not in moments.state:
        return "it was not trained before"
    if moments.shapes[old] != tuple(parameter.shape):
        return f"its shape changed from {list(moments.shapes[old])} to {list(parameter.shape)}"
    return None


def _kind(optimizer: Any) -> str:
    # Fused and plain Adam have the same state; bitsandbytes' classes have the bits in their arguments.
    bits = getattr(getattr(optimizer, "args", None), "optim_bits", None)
    return f"{type(optimizer).__name__}{f'-{bits}bit' if bits else ''}"


def _unwrapped(optimizer: Any) -> Any:
    while hasattr(optimizer, "optimizer") and hasattr(optimizer, "step_was_skipped"):
        optimizer = optimizer.optimizer  # accelerate's AcceleratedOptimizer
    return optimizer


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name.replace("_orig_mod.", "") for name, parameter in model.named_parameters()}


def _indexed_groups(optimizer: Any) -> list[dict[str, Any]]:
    groups, index = [], 0
    for group in optimizer.param_groups:
        count = len(group["params"])
        groups.append({**group, "params": list(range(index, index + count))})
        index += count
    return groups


def _whole_on_cpu(value: Any) -> Any:
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    return value.detach().cpu() if torch.is_tensor(value) else value


def _laid_out_like(value: Any, parameter: torch.Tensor, *, copy: bool) -> Any:
    if not torch.is_tensor(value):
        return value
    if hasattr(parameter, "device_mesh") and tuple(value.shape) == tuple(parameter.shape):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.clone() if copy else value
