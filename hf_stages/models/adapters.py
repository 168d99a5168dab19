"""The weights of a PEFT model: which belong to the base and which to the adapter, and how both are stored.

The model's modules say which: what a wrapper of PEFT wraps is the base, everything else in it is the adapter.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

BASE, ADAPTER = "base", "adapter"
"""Folders of a stage whose base and adapter are stored apart."""
_FILE, _CONFIG, _STATE = "adapter_model.safetensors", "adapter_config.json", "adapter_state.safetensors"
_LAYOUT = "_hf_stages_layout"


@dataclass(frozen=True)
class Layout:
    """How a PEFT model is written, so that stock ``from_pretrained(folder)`` gives the right model or an error."""

    apart: str | None = None
    """Why stock transformers would not make the model of a base with the adapter beside it; None where it would."""
    own: bool = False
    """Whether the adapter needs a file of ours: PEFT's own lacks a part of it (the encoder of prompts)."""


def is_peft(model: Any) -> bool:
    """Whether a model is a PEFT model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def note_layout(model: Any, layout: Layout) -> None:
    """Note on a model how it must be written."""
    vars(model)[_LAYOUT] = layout


def layout_of(model: Any) -> Layout:
    """Return the layout that was noted before the model was wrapped or sharded."""
    return vars(model).get(_LAYOUT, Layout())


def base_names(model: Any) -> dict[str, str]:
    """Map full names in the PEFT model to names in the base model; names of the adapters are left out.

    Beside a module that trains in full PEFT keeps the original, which is not used. The original belongs to the base.
    """
    base, prefix = model.get_base_model(), base_prefix(model)
    found = {}
    for full in model.state_dict():
        plain = _name_without_wrappers(base, full.removeprefix(prefix)) if full.startswith(prefix) else None
        if plain is not None:
            found[full] = plain
    return found


def base_prefix(model: Any) -> str:
    """Return what precedes the base's names in the PEFT model."""
    return _path_to(model, model.get_base_model()) + "."


def adapter_names(model: Any) -> list[str]:
    """List the full names that belong to the adapter alone. (Prompt tuning also holds the base's embeddings.)"""
    state, base = model.state_dict(keep_vars=True), base_names(model)
    shared = {id(state[name]) for name in base}
    return [name for name, tensor in state.items() if name not in base and id(tensor) not in shared]


def trained_in_base(model: Any) -> list[str]:
    """List the weights of the base that are trained beside the adapter."""
    base = base_names(model)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and name in base]


def plain_copy(model: Any) -> Any:
    """Copy the base model to the meta device, without adapters and weights."""
    base = meta_copy(model.get_base_model())
    _unwrap(base)
    vars(base).pop("peft_config", None)
    left = next((m for m in base.modules() if type(m).__module__.startswith("peft.")), None)
    if left is not None:
        raise ValueError(
            f"a {type(left).__name__} takes the place of a part of {type(base).__name__} and cannot be told from it"
        )
    return base


def _unwrap(module: nn.Module) -> None:
    for name, child in [*module.named_children()]:
        inner: Any = child
        while (wrapped := _inside_wrapper(inner)) is not None:
            inner = wrapped[1]
        if inner is not child:
            setattr(module, name, inner)
        _unwrap(inner)


def meta_copy(model: nn.Module, *, but: Collection[str] = ()) -> Any:
    """Copy a model without its weights: tensors are on the meta device, and those named in ``but`` are zeros."""
    memo: dict[int, Any] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        _add_empty(memo, tensor, "cpu" if name in but else "meta")
    for tensor in (*model.parameters(), *model.buffers()):
        _add_empty(memo, tensor, "meta")
    return copy.deepcopy(model, memo)


def _add_empty(memo: dict[int, Any], tensor: torch.Tensor, device: str) -> None:
    if id(tensor) not in memo:
        empty = torch.zeros_like(tensor.detach(), device=device)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def adapter_tensors(model: Any, name: str, state: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors of one adapter as its file holds them."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(model, state_dict=state, adapter_name=name, save_embedding_layers=False)
    return _with_full_names(found, model, name)


def save_adapters(model: Any, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write PEFT's files. A model's only adapter is written to the folder itself, whatever its name is."""
    model.save_pretrained(folder, state_dict=state)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    for name, place in _adapter_folders(model, folder):
        if place == folder and name != "default":
            for file in (folder / name).iterdir():
                file.replace(folder / file.name)
            (folder / name).rmdir()
        tensors = load_file(place / _FILE)
        if (full := _with_full_names(tensors, model, name)).keys() != tensors.keys():
            save_file(full, place / _FILE, metadata={"format": "pt"})
    normalize_adapter_configs(model, folder)
    if layout_of(model).own:
        save_adapter_state(model, folder, state)


def load_adapters(model: Any, folder: Path) -> None:
    """Read what ``save_adapters`` or Trainer wrote, into a model that has these adapters already."""
    from peft import set_peft_model_state_dict

    if (folder / _STATE).is_file():
        result = model.load_state_dict(load_file(folder / _STATE), strict=False)
        if result.unexpected_keys:
            raise ValueError(f"{folder}: {_STATE}: the model has no {result.unexpected_keys[0]}")
        return
    for name, place in _adapter_folders(model, folder):
        place = place if (place / _FILE).is_file() else folder / name  # Trainer's checkpoints keep PEFT's folders
        tensors = load_file(place / _FILE)
        known = model.state_dict()
        wrong = set_peft_model_state_dict(model, tensors, adapter_name=name).unexpected_keys
        wrong = [key for key in wrong if key not in known and not model.peft_config[name].is_prompt_learning]
        if wrong:
            raise ValueError(f"{place}: the adapter does not fit the model: unexpected {wrong[:3]}")


def save_adapter_state(model: Any, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write all tensors of the adapter under the model's own names."""
    state = model.state_dict() if state is None else state
    own: dict[str, torch.Tensor] = {}
    written: set[int] = set()
    for name in adapter_names(model):
        tensor = state[name].detach().cpu().contiguous()
        again = tensor.data_ptr() in written
        written.add(tensor.data_ptr())
        own[name] = tensor.clone() if again else tensor
    save_file(own, folder / _STATE)


def structure_only_config(config: Any) -> Any:
    """Copy an adapter's config so that it builds the structure alone: weights are read later, not initialized."""
    config = copy.deepcopy(config)
    if isinstance(getattr(config, "init_lora_weights", None), str):
        config.init_lora_weights = True
    if getattr(config, "prompt_tuning_init", None) is not None:
        config.prompt_tuning_init = "RANDOM"
    return config


def normalize_adapter_configs(model: Any, folder: Path) -> None:
    """Rewrite the adapters' config files so that equal runs write equal files."""
    for name, place in _adapter_folders(model, folder):
        path = place / _CONFIG
        _normalize_config(path if path.is_file() else folder / name / _CONFIG)


def _normalize_config(path: Path) -> None:
    """Sort what PEFT writes in any order, and leave out how the adapter was initialized and which base it had.

    The base beside the adapter is the trained one: PiSSA and similar methods must not initialize from it again, and no
    other base must be loaded by its name.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    config = {
        key: sorted(value) if key == "target_modules" and isinstance(value, list) else value
        for key, value in config.items()
    }
    if isinstance(config.get("init_lora_weights"), str):
        config["init_lora_weights"] = True
    config["base_model_name_or_path"] = None
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _adapter_folders(model: Any, folder: Path) -> Iterator[tuple[str, Path]]:
    for name in model.peft_config:
        yield name, folder if name == "default" or len(model.peft_config) == 1 else folder / name


def _with_full_names(tensors: dict[str, torch.Tensor], model: Any, name: str) -> dict[str, torch.Tensor]:
    """Complete names that PEFT shortens (DoRA's magnitudes): PEFT knows how to complete them, transformers does not."""
    full = {".".join(part for part in key.split(".") if part != name) for key in adapter_names(model)}
    return {
        f"{key}.weight" if key not in full and f"{key}.weight" in full else key: value for key, value in tensors.items()
    }


def _path_to(model: nn.Module, inner: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is inner and name)


def _name_without_wrappers(module: Any, name: str) -> str | None:
    """Return a tensor's name without wrappers; None where the tensor belongs to a wrapper."""
    parts, names = name.split("."), []
    while parts:
        if (wrapped := _inside_wrapper(module)) is not None:
            path, module = wrapped
            if parts[: len(path)] != path:
                return None
            parts = parts[len(path) :]
            continue
        names.append(parts.pop(0))
        module = getattr(module, names[-1], None)
    return ".".join(names)


def _inside_wrapper(module: Any) -> tuple[list[str], Any] | None:
    """Return the path within a wrapper of PEFT and the module that it wraps; None for any other module."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if isinstance(module, AuxiliaryTrainingWrapper):
        inner = module.original_module
    elif isinstance(module, BaseTunerLayer):
        inner = getattr(module, "base_layer", None)
    else:
        return None
    return None if inner is None else (_path_to(module, inner).split("."), inner)
