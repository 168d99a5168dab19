"""Put packed layers into a model that is about to be loaded, after checking that its files fit them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_stages.layers.quantizable import holders_of
from hf_stages.packing._header import header_of
from hf_stages.packing._reshaped import reshape, size_of
from hf_stages.packing._spec import PackedSpec, from_layers
from hf_stages.packing.convert import packed_embedding_for, packed_linear_for, tie_packed_layers
from hf_stages.packing.packed_weight import SCALE, PackedWeight

_DTYPES = {"weight": "I8", SCALE: "F32"}


def install(model: Any, config: Any, files: Sequence[str] | None) -> None:
    """Replace the modules that ``config`` (a ``PackedConfig``) names, in a model on the meta device.

    ``files`` are those of the checkpoint. They are checked first.
    """
    specs, headers, prefix = from_layers(config.layers), _headers(files or ()), f"{model.base_model_prefix}."
    modules = dict(model.named_modules())

    def places(name: str) -> tuple[str, str, str]:
        # A file of a BertForX may be read as a BertModel, and the other way round.
        return name, name.removeprefix(prefix), f"{prefix}{name}"

    if not any(f"{place}.weight" in headers for name in specs for place in places(name)):
        headers = {}  # transformers renames the weights of this architecture: nothing to compare
    reshape(modules, places, config.reshaped)
    tied = {name.rpartition(".")[0] for pair in model.all_tied_weights_keys.items() for name in pair}
    whole = type(model).__name__ in (model.config.architectures or ())
    for name, spec in specs.items():
        ours = next((place for place in places(name) if place in modules), None)
        if ours is None:
            continue  # part of another head
        module = modules[ours]
        rows, columns = _size(ours, module)
        if spec.group is not None and columns % spec.group:
            raise ValueError(
                f"{ours}: config.json has groups of {spec.group}, which do not fill rows of {columns} weights"
            )
        if headers and not _is_stored(places(name), spec, rows, columns, headers) and ours not in tied:
            if whole:
                raise ValueError(
                    f"{name}: is packed, says config.json, but it is not in the checkpoint; download it anew"
                )
            continue  # new in this class of model: transformers draws it and warns
        new = (packed_embedding_for if isinstance(module, nn.Embedding) else packed_linear_for)(module, spec)
        for parent, key in holders_of(model, {id(module)}):
            parent._modules[key] = new
    _check_all_listed(headers, {place for name in specs for place in places(name)} | tied, places)
    if not any(isinstance(module, PackedWeight) for module in model.modules()):
        raise ValueError(
            f"config.json: quantization_config.layers names {len(specs)} packed modules such as "
            f"{next(iter(specs), None)!r}, but "
            f"{type(model).__name__} has none of them; load the model with the class in its config's architectures"
        )
    tie_packed_layers(model)


def _check_all_listed(headers: Mapping[str, Any], known: set[str], places: Callable[[str], Sequence[str]]) -> None:
    """Refuse files with packed weights that the config does not list."""
    for name in (key.removesuffix(".weight") for key in headers if key.endswith(".weight")):
        stored = {key: headers.get(f"{name}.{key}", {}).get("dtype") for key in _DTYPES}
        if stored == _DTYPES and not known.intersection(places(name)):
            raise ValueError(
                f"{name}: is packed in the checkpoint, and quantization_config.layers in config.json does not name it; "
                "pack the model again, or download it anew"
            )


def check_values(model: nn.Module) -> None:
    """Refuse a loaded model whose packed weights hold impossible values."""
    for name, module in model.named_modules():
        if isinstance(module, PackedWeight) and not module.weight.is_meta and (problem := module.problem()) is not None:
            raise ValueError(f"{name}.{problem}; the packed file is damaged: pack the model again, or download it anew")


def _size(name: str, module: Any) -> tuple[int, int]:
    if not isinstance(module, nn.Linear | nn.Embedding | Conv1D):
        raise ValueError(
            f"{name}: config.json has it as a packed weight; expected a linear layer or an embedding, got a "
            f"{type(module).__name__}"
        )
    return size_of(module)


def _is_stored(names: Sequence[str], spec: PackedSpec, rows: int, columns: int, headers: Mapping[str, Any]) -> bool:
    """Whether a packed weight is on disk; ValueError where it is there with another dtype or shape."""
    stored = {key: next((k for k in (f"{n}.{key}" for n in names) if k in headers), None) for key in _DTYPES}
    if not any(stored.values()):
        return False
    for (key, dtype), shape in zip(_DTYPES.items(), spec.shapes(rows, columns), strict=True):
        where, found = f"{names[0]}.{key}", headers.get(stored[key] or "")
        if found is None:
            raise ValueError(
                f"{where}: is not in the checkpoint, which has other parts of {names[0]}; download it anew"
            )
        if found.get("dtype") != dtype or tuple(found["shape"]) != shape:
            raise ValueError(
                f"{where}: expected {dtype} of shape {list(shape)} for {spec.levels} weights of {rows} x {columns}, "
                f"got {found.get('dtype')} of shape {found.get('shape')}; the file does not fit its config.json"
            )
    return True


def _headers(files: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in map(Path, files):
        if file.suffix != ".safetensors":
            raise ValueError(f"{file}: a packed checkpoint is a .safetensors file")
        found.update(header_of(file).entries)
    return found
