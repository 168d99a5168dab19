"""Rebuild a model's structure, and read the weights of a stage folder into it."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_stages.core.parts import part_from_dict, part_to_dict
from hf_stages.core.randomness import preserve_random_state
from hf_stages.layers.bits import stored_size_or_none
from hf_stages.layers.own_type import with_mark
from hf_stages.layers.quantized import WithStrength
from hf_stages.models import own_models
from hf_stages.models.adapter_folders import check_adapter
from hf_stages.models.adapters import (
    ADAPTER,
    BASE,
    adapter_names,
    base_names,
    is_peft,
    layout_of,
    load_adapters,
    plain_copy,
    save_adapters,
    structure_only_config,
)

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_BLUEPRINT = "_hf_stages_origin"

logger = logging.get_logger(__name__)


class Blueprint:
    """What is needed to build the initial model's structure again: class, config, transforms, dtypes, what is frozen.

    A branch starts from a stage that is no longer in memory, and sharded models cannot be transformed in place.

    Args:
        model: The initial model.

    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    >>> type(Blueprint(model).build("meta")).__name__
    'BertModel'
    """

    weights: int | None = None
    """The number of weights of the initial model; None where it is not known."""
    transforms: tuple[Any, ...] = ()
    """Transforms of earlier runs: those of the stage folder that the model was read from."""

    def __init__(self, model: nn.Module) -> None:
        size = stored_size_or_none(model)
        self.weights = None if size is None else size.weights
        self.adapter, self.adapter_name, self.trusted = None, "default", True
        if is_peft(model) and len(model.peft_config) == 1:
            self.adapter_name, adapter = next(iter(model.peft_config.items()))
            self.adapter = structure_only_config(adapter)
        check_adapter(model, "model")
        parameters, outer = dict(model.named_parameters()), model
        model = model.get_base_model() if self.adapter is not None else model
        self.kind = type(model)
        self.buildable = isinstance(model, PreTrainedModel) and getattr(model, "hf_quantizer", None) is None
        self.config = copy.deepcopy(model.config) if self.buildable else None
        self.dtype = model.dtype if self.buildable else None
        self.generation = copy.deepcopy(getattr(model, "generation_config", None))
        if (origin := vars(outer).get(_BLUEPRINT)) is not None:
            self._take_over(origin)
        self.frozen = {name for name, p in parameters.items() if not p.requires_grad}
        self.dtypes = {name: p.dtype for name, p in parameters.items() if p.dtype != self.dtype}
        if self.buildable and (difference := self._difference_from_config(outer)) is not None:
            self.buildable = False
            logger.warning(
                f"the {type(outer).__name__} differs from what its config describes ({difference}): its stages can "
                "only follow one another, and their folders cannot be read by from_stage. Let transforms of the first "
                "stage change it, or read it from a stage folder"
            )

    def _difference_from_config(self, model: nn.Module) -> str | None:
        """Say where a model that is built again would differ from ``model``; None where it would not."""
        try:
            return _difference(model, self.build("meta"))
        except (RuntimeError, NotImplementedError) as error:
            if self.adapter is None:
                raise
            return f"its adapter is made from values of its weights: {str(error).partition(chr(10))[0]}"

    def _take_over(self, origin: Blueprint) -> None:
        """Build what ``origin`` builds. What is trained, and in which dtype, is still read from the model itself."""
        attention = getattr(self.config, "_attn_implementation", None)
        self.kind, self.dtype = origin.kind, origin.dtype
        self.adapter, self.adapter_name = origin.adapter, origin.adapter_name
        self.config, self.transforms, self.trusted = copy.deepcopy(origin.config), origin.transforms, origin.trusted
        if attention is not None:
            self.config._attn_implementation = attention  # type: ignore[union-attr]

    def mark(self, model: Any, transforms: Iterable[Any]) -> None:
        """Note on a model which transforms made it from this structure, for a later run that starts with it."""
        origin = copy.copy(self)
        origin.transforms = (*self.transforms, *transforms)
        vars(model)[_BLUEPRINT] = origin

    def to_dict(self) -> dict[str, Any]:
        """Return what ``stage.json`` records, so that a folder can be loaded without the script that made it."""
        name = f"{self.kind.__module__}:{self.kind.__qualname__}"
        if not self.buildable:
            return {"class": name, "config": None}
        config = self.config.to_dict()  # type: ignore[union-attr]
        adapter = None if self.adapter is None else _as_json(self.adapter.to_dict())
        return {
            "class": name,
            "config": config,
            "dtype": str(self.dtype),
            "dtypes": {name: str(dtype) for name, dtype in self.dtypes.items()},
            "frozen": sorted(self.frozen),
            "adapter": adapter,
            "adapter_name": self.adapter_name,
            "transforms": [part_to_dict(transform, "transforms") for transform in self.transforms],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, trust_remote_code: bool = False) -> Blueprint:
        """Read what ``to_dict`` returned."""
        module, _, name = data["class"].partition(":")
        if data["config"] is None:
            raise ValueError(
                f"the run began with a {name}, which cannot be built from a config; load it as it was made"
            )
        if not module.startswith("transformers.") and not trust_remote_code:
            raise ValueError(
                f"the folder names the model class {data['class']!r}; pass trust_remote_code=True to import it"
            )
        own = cls.__new__(cls)
        own.kind = getattr(importlib.import_module(module), name)
        own.buildable, own.generation = True, None
        own.config = with_mark(own.kind.config_class.from_dict(dict(data["config"])))
        own.dtype = getattr(torch, data["dtype"].removeprefix("torch."))
        own.dtypes = {name: getattr(torch, dtype.removeprefix("torch.")) for name, dtype in data["dtypes"].items()}
        own.adapter, own.trusted = None, trust_remote_code
        own.adapter_name = data.get("adapter_name", "default")
        if data["adapter"] is not None:
            from peft import get_peft_config

            own.adapter = get_peft_config(dict(data["adapter"]))
        own.frozen = set(data["frozen"])
        own.transforms = tuple(
            part_from_dict(part, "transforms", trust_remote_code=trust_remote_code)
            for part in data.get("transforms", ())
        )
        return own

    def build(self, device: str | torch.device = "cpu") -> Any:
        """Build the structure with random weights, or without weights on the meta device."""
        if not self.buildable:
            raise ValueError(
                f"cannot build a second {self.kind.__name__}: only an unquantized transformers model that is as its "
                "config says can be built from it; make the trainer anew to resume, and start no stage from an earlier "
                "one than the last"
            )
        with preserve_random_state(), torch.device(device):
            model = own_models.build(
                self.kind, copy.deepcopy(self.config), dtype=self.dtype, trust_remote_code=self.trusted
            )
        if self.generation is not None:
            model.generation_config = copy.deepcopy(
                self.generation
            )  # the one that was loaded may differ from the config's
        if self.adapter is not None:
            from peft import get_peft_model

            with preserve_random_state():
                model = get_peft_model(model, copy.deepcopy(self.adapter), adapter_name=self.adapter_name)
        with torch.device(device):
            model = replay(model, self.transforms)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in self.frozen)
            if name in self.dtypes:
                parameter.data = parameter.data.to(self.dtypes[name])
        return model


def _as_json(value: Any) -> Any:
    """Turn PEFT's config into JSON data: sets become lists, and enums become their values."""
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, set | frozenset | list | tuple):
        return [_as_json(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    return getattr(value, "value", value)


def _difference(model: nn.Module, other: nn.Module) -> str | None:
    """Return the first parameter or quantized layer that differs between two structures; None where none does."""
    one, two = _structure(model), _structure(other)
    return next((name for name in (*one, *two) if one.get(name) != two.get(name)), None)


def _structure(model: nn.Module) -> dict[str, Any]:
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    layers = {
        path: (type(module).__name__, module.quantizer, module.activations)
        for path, module in model.named_modules()
        if isinstance(module, WithStrength)
    }
    return shapes | layers


def replay(model: Any, transforms: Iterable[Any]) -> Any:
    """Apply the transforms of earlier stages to a new structure. Its weights do not matter: they are loaded later."""
    with preserve_random_state():
        for transform in transforms:
            model = transform(model)
    return model


def save_weights(model: Any, folder: Path, *, state_dict: dict | None = None) -> None:
    """Write a complete model folder: config and weights, and for a PEFT model the full base with the adapter beside it.

    Stock ``from_pretrained(folder)`` finds an adapter beside a full base and applies it. Where that would not give the
    model, base and adapter are written to two folders, and stock transformers finds no model in this one.
    """
    if is_peft(model):
        state = state_dict if state_dict is not None else model.state_dict()
        clean = {plain: state[full] for full, plain in base_names(model).items() if full in state}
        apart = layout_of(model).apart is not None
        _save_pretrained(model.get_base_model(), folder / BASE if apart else folder, clean)
        save_adapters(model, folder / ADAPTER if apart else folder, state_dict)
    elif isinstance(model, PreTrainedModel):
        _save_pretrained(model, folder, state_dict)
    else:
        from safetensors.torch import save_file

        state = state_dict if state_dict is not None else model.state_dict()
        save_file({k: v.contiguous() for k, v in state.items()}, folder / _WEIGHTS, metadata={"format": "pt"})


def load_weights(model: Any, folder: Path) -> None:
    """Read a folder's weights into a model of the same structure. A missing weight is an error."""
    if is_peft(model):
        apart = (folder / BASE).is_dir()
        _load_base(model, folder / BASE if apart else folder)
        load_adapters(model, folder / ADAPTER if apart else folder)
        return
    state = _read_tensors(folder)
    try:
        _load(model, state, folder)
    except ValueError:
        # Some architectures store weights under other names than in memory; from_pretrained knows them.
        if not isinstance(model, PreTrainedModel):
            raise
        _load(model, _renamed_as_in_memory(model, state), folder)


def _load_base(model: Any, folder: Path) -> None:
    """Read the base of a PEFT model, which is stored as a model of its own."""
    names, own, state = base_names(model), set(adapter_names(model)), _read_tensors(folder)
    if set(state) - set(names.values()) and isinstance(model.get_base_model(), PreTrainedModel):
        state = _renamed_as_in_memory(plain_copy(model), state)
    state = {full: state[plain] for full, plain in names.items() if plain in state}
    _load(model, state, folder, ignore=own.__contains__)


def _save_pretrained(model: PreTrainedModel, folder: Path, state_dict: dict | None) -> None:
    kind = type(model)
    architectures = model.config.architectures
    model.save_pretrained(folder, state_dict=state_dict)
    if kind.__name__.startswith("FSDP"):
        # fully_shard swaps the class for a subclass FSDP<name>, which save_pretrained would write down.
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["architectures"] = architectures or [kind.__mro__[2].__name__]
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        model.config.architectures = architectures


def _renamed_as_in_memory(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a folder's weights under the model's own names, to which transformers renames and merges them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    known = model.state_dict()
    renamings = [entry for entry in get_model_conversion_mapping(model) if isinstance(entry, WeightRenaming)]
    found = {}
    for name, tensor in state.items():
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        if name in known:
            found[name] = tensor
    # What a plain model lacks (latent weights) is only renamed; from_pretrained merges the rest.
    config = copy.deepcopy(model.config)
    options = {"dtype": model.dtype, "state_dict": state, "output_loading_info": True}
    made, info = own_models.read(type(model), None, config=config, **options)
    plain, drawn = made.state_dict(), set(info["missing_keys"])  # what is not in the folder was drawn at random
    merged = {
        name: tensor for name, tensor in plain.items() if name in known and name not in found and name not in drawn
    }
    own = {name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())}
    latent = any(name not in plain for name in found)
    return found | {name: tensor for name, tensor in merged.items() if name in own or not latent}


def latent_split_on_disk(model: Any) -> str | None:
    """Name a latent weight that transformers would store in pieces, as it does the weight itself; None without one.

    transformers 5.19 treats ``gate_up_proj_latent`` of a mixture of experts like ``gate_up_proj``; 5.23 does not.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    model = model.get_base_model() if is_peft(model) else model
    if not isinstance(model, PreTrainedModel) or not any(isinstance(m, WithStrength) for m in model.modules()):
        return None
    known = get_model_conversion_mapping(model)
    on_saving = [entry.reverse_transform() for entry in known if isinstance(entry, WeightConverter)]
    latents = [name for name, _ in model.named_parameters() if "_latent" in name.rpartition(".")[2]]
    return next((name for name in latents if any(e.rename_source_key(name)[1] is not None for e in on_saving)), None)


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    index = folder / _INDEX
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return {name: tensor for shard in shards for name, tensor in load_file(folder / shard).items()}
    return load_file(folder / _WEIGHTS)


def _load(model: nn.Module, state: dict[str, torch.Tensor], folder: Path, ignore: Any = None) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = [n for n, t in state.items() if n in shapes and tuple(t.shape) != shapes[n]]
    if wrong:
        raise ValueError(
            f"{folder}: {wrong[0]} has shape {list(state[wrong[0]].shape)}, the model expects "
            f"{list(shapes[wrong[0]])}; "
            "is this the model that the run began with?"
        )
    result = model.load_state_dict(state, strict=False)
    missing = _really_missing(model, result.missing_keys, state)
    missing = [name for name in missing if not (ignore and ignore(name))]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"{folder}: its weights do not fit the model: missing {missing[:3]}, unexpected "
            f"{result.unexpected_keys[:3]}; "
            "is this the model that the run began with?"
        )


def _really_missing(model: nn.Module, missing: list[str], state: dict[str, torch.Tensor]) -> list[str]:
    """Return the missing names that share no memory with a loaded tensor: of tied weights one is stored."""
    tensors = model.state_dict()
    loaded = {tensors[name].data_ptr() for name in state if name in tensors}
    return [name for name in missing if tensors[name].data_ptr() not in loaded]
