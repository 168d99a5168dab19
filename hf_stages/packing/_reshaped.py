"""Shapes that a model's config cannot describe, such as a BERT with half of its heads.

They are stored with the packed layers. Comparing the model with one that its config builds shows them: modules of other
sizes, and other numbers (of heads).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_stages.packing.packed_weight import PackedWeight


def reshaped(model: Any) -> dict[str, Any]:
    """Return sizes of packed modules and numbers of modules that differ from what the config builds; mostly none."""
    from hf_stages.models.own_models import build

    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        skeleton = dict(build(type(model), config).named_modules())
    sizes: dict[str, list[int]] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        other = skeleton.get(name)
        if other is None:
            raise ValueError(
                f"pack: {name}: {type(model).__name__} does not build this module from its config, so that a packed "
                "file of it could not be loaded; pack a model whose structure its config says (or that transforms made)"
            )
        if isinstance(module, PackedWeight):
            rows, columns = module.scale.shape[-2], module.columns
            if (rows, columns) != size_of(other):
                sizes[name] = [rows, columns]
        elif any(_shape(own) != _shape(theirs) for own, theirs in _pairs(module, other)):
            raise ValueError(
                f"pack: {name}: its shape is not what the config builds, and it is not packed; quantize it too"
            )
        if own := _numbers(module, other):
            numbers[name] = own
    return {key: value for key, value in (("sizes", sizes), ("numbers", numbers)) if value}


def reshape(modules: Mapping[str, Any], places: Callable[[str], Sequence[str]], found: Any) -> None:
    """Set in a skeleton's modules the sizes and numbers that ``reshaped`` returned."""
    sizes, numbers = (found.get(key, {}) if isinstance(found, Mapping) else None for key in ("sizes", "numbers"))
    if not isinstance(sizes, Mapping) or not isinstance(numbers, Mapping):
        raise ValueError(
            f"config.json: quantization_config.reshaped: expected sizes and numbers by module, got {found!r}"
        )
    for name, size in sizes.items():
        if not (isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
            raise ValueError(
                f"config.json: quantization_config.reshaped: {name}: expected rows and columns, got {size!r}"
            )
        for module in (modules[place] for place in places(name) if place in modules):
            _resize(module, *size)
    for name, own in numbers.items():
        for module in (modules[place] for place in places(name) if place in modules):
            for key, value in own.items() if isinstance(own, Mapping) else ():
                if not _is_number(vars(module).get(key)) or not _is_number(value):
                    raise ValueError(
                        f"config.json: quantization_config.reshaped: {name} has no number {key!r} to be {value!r}"
                    )
                setattr(module, key, value)


def _resize(module: Any, rows: int, columns: int) -> None:
    if isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = rows, columns
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = rows, columns
    else:
        module.nf, module.nx = rows, columns
    if getattr(module, "bias", None) is not None:
        module.bias = nn.Parameter(module.bias.new_empty(rows))


def size_of(module: Any) -> tuple[int, int]:
    """Return the rows (outputs or entries) and the columns of a plain layer."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return module.nf, module.nx  # Conv1D


def _numbers(module: nn.Module, other: nn.Module) -> dict[str, Any]:
    if isinstance(module, PackedWeight):
        return {}
    theirs = vars(other)
    return {
        key: value
        for key, value in vars(module).items()
        if _is_number(value) and _is_number(theirs.get(key)) and theirs[key] != value
    }


def _pairs(module: nn.Module, other: nn.Module) -> list[tuple[Any, Any]]:
    return [(own, other._parameters.get(name)) for name, own in module._parameters.items() if own is not None]


def _shape(tensor: Any) -> Any:
    return None if tensor is None else tuple(tensor.shape)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
