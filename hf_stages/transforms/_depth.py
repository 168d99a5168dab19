"""Changes that a new depth needs in a transformers model, found by comparing two skeletons, one of each depth.

Depth is written down in the config (a number, and lists with one entry per layer), in the copies of the config that
encoder and decoder hold, in the blocks (the index under which they find their cache) and, in T5's kind, in the one
block that holds the position biases of all. Building both models from their configs on the meta device shows all of
it; and what ``from_pretrained`` would build is then what is saved, or the reduction is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from hf_stages.transforms._kept_blocks import KeptBlocks

_INDICES = frozenset({"layer_idx", "layer_id", "layer_index", "layer_number"})
_BY_POSITION = _INDICES | {"drop_prob", "has_relative_attention_bias"}
"""Attributes of a block that say where it stands (drop_prob: stochastic depth grows with it), not what it does."""
_BIAS = "relative_attention_bias"
_BACKBONE = ("_out_features", "_out_indices")
_NOT_PER_LAYER = ("_id", "_ids", "_indices", "_idxs", "architectures", "_features", "stage_names", "_modules")
"""Endings of config lists whose length has nothing to do with the depth."""


@dataclass(frozen=True)
class DepthChange:
    """What to set in a model whose stack got fewer blocks."""

    old: nn.Module
    new: nn.Module
    """Skeletons before and after."""
    attributes: tuple[tuple[str, str, Any], ...]
    """(module name after, attribute, value)"""
    biases: tuple[str, ...]
    """Names within a block of what the first block holds for all of them."""

    def apply(self, model: nn.Module) -> None:
        """Set configs and attributes. The blocks themselves are cut before."""
        seen: set[int] = set()
        old, new = dict(self.old.named_modules()), dict(self.new.named_modules())
        for name, module in model.named_modules():
            config = vars(module).get("config")
            if isinstance(config, PretrainedConfig) and id(config) not in seen and name in new and name in old:
                seen.add(id(config))
                _copy_changes(config, vars(old[name])["config"], vars(new[name])["config"])
        for name, key, value in self.attributes:
            setattr(model.get_submodule(name), key, value)


def depth_change(model: Any, blocks_kept: KeptBlocks) -> DepthChange:
    """Compare both skeletons; ValueError where the shallower model would not be what its config describes."""
    old = build_from_config(model, model.config)
    new = build_from_config(model, _reduced_config(model, blocks_kept))
    new_name = ((blocks_kept.new_name(name), module) for name, module in old.named_modules())
    before = {name: module for name, module in new_name if name is not None}
    attributes, biases = [], set()
    for name, module in new.named_modules():
        was = before.pop(name, None)
        if was is None and name.endswith(f".{_BIAS}"):
            biases.add(blocks_kept.name_in_block(name))
            continue
        _check_same_kind(name, was, module)
        attributes += [(name, key, value) for key, value in _differences(name, was, module, blocks_kept)]
    left = [name for name in before if not name.endswith(f".{_BIAS}")]
    if left:
        _check_same_kind(left[0], before[left[0]], None)
    return DepthChange(old, new, tuple(attributes), tuple(biases))


# ---- the config -----------------------------------------------------------------------------------------------------


def _reduced_config(model: Any, blocks_kept: KeptBlocks) -> PretrainedConfig:
    """A copy of the model's config that says the new depth."""
    root = copy.deepcopy(model.config)
    config = root
    for key in keys_between(model.config, config_around(model, blocks_kept.path)) or ():
        config = getattr(config, key)
    role = next((part for part in reversed(blocks_kept.path.split(".")) if part in ("encoder", "decoder")), "")
    names = [f"num_{role}_layers", f"{role}_layers", f"{role}_num_hidden_layers"] if role else []
    names = [n for n in (*names, "num_hidden_layers", "num_layers") if getattr(config, n, None) == blocks_kept.depth]
    if not names:
        raise ValueError(
            f"{blocks_kept.path} has {blocks_kept.depth} blocks, but no number in its config says so "
            "(num_hidden_layers and the like); it could not be loaded again"
        )
    for key, value in list(vars(config).items()):
        per_layer = isinstance(value, list | tuple) and len(value) == blocks_kept.depth
        if per_layer and not key.startswith("_") and not key.endswith(_NOT_PER_LAYER):
            setattr(config, key, type(value)(value[i] for i in blocks_kept.kept))
    setattr(config, names[0], len(blocks_kept.kept))
    _shorten_backbone(config, blocks_kept)
    return root


def _shorten_backbone(config: Any, blocks_kept: KeptBlocks) -> None:
    """Drop names of stages that are gone. Vision backbones name each layer's output, and return the last one's."""
    if vars(config).get("_out_indices") == [blocks_kept.depth] and len(config.stage_names) == blocks_kept.depth + 1:
        config.stage_names = config.stage_names[: len(blocks_kept.kept) + 1]
        config.set_output_features_output_indices(out_features=None, out_indices=None)


def config_around(model: Any, path: str) -> Any:
    """The config of the nearest module around a stack that has one."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        config = vars(model.get_submodule(".".join(parts[:end]))).get("config")
        if config is not None:
            return config
    return model.config


def keys_between(root: PretrainedConfig, wanted: Any) -> tuple[str, ...] | None:
    """The attributes that lead from a config to one inside it; None for a copy, as T5's stacks hold."""
    if root is wanted:
        return ()
    for key, value in vars(root).items():
        below = keys_between(value, wanted) if isinstance(value, PretrainedConfig) else None
        if below is not None:
            return (key, *below)
    return None


def _copy_changes(config: Any, old: Any, new: Any) -> None:
    for key, value in vars(new).items():
        was = vars(old).get(key)
        if isinstance(value, PretrainedConfig) and isinstance(was, PretrainedConfig):
            _copy_changes(getattr(config, key), was, value)
        elif (not key.startswith("_") or key in _BACKBONE) and value != was:
            setattr(config, key, copy.deepcopy(value))


# ---- the skeletons --------------------------------------------------------------------------------------------------


def build_from_config(model: Any, config: Any) -> nn.Module:
    """Build what ``from_pretrained`` would, without values: the config goes through its dictionary, as on disk."""
    kind: Any = type(model)
    try:
        with torch.device("meta"):
            return kind._from_config(type(config).from_dict(config.to_dict()))
    except Exception as error:  # whatever the model's own code finds wrong with its config
        raise ValueError(f"it cannot be built from its config with the new numbers: {error}") from error


def _check_same_kind(name: str, was: nn.Module | None, now: nn.Module | None) -> None:
    if type(was) is not type(now):
        old, new = ("nothing" if m is None else type(m).__name__ for m in (was, now))
        raise ValueError(
            f"{name}: the kept block has {old}, the reduced config would build {new} there; "
            "the config tells the blocks' kinds by position: keep blocks whose kinds fit it"
        )
    tensors = (
        (*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)) for m in (was, now) if m is not None
    )
    shapes = [{key: list(tensor.shape) for key, tensor in own} for own in tensors]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{name}: its tensors have the shapes {shapes[0]}, the reduced config would build {shapes[1]}; "
            "this architecture ties widths to the depth"
        )


def _differences(name: str, was: Any, now: nn.Module, blocks_kept: KeptBlocks) -> Iterator[tuple[str, Any]]:
    for key, value in vars(now).items():
        old = vars(was).get(key)
        plain = isinstance(value, int | float | str | None) and not key.startswith("_")
        if not plain or (type(old) is type(value) and old == value):
            continue
        count = old == blocks_kept.depth and value == len(blocks_kept.kept)
        where = f"{name}.{key}" if name else key
        if key not in _BY_POSITION and not count:
            raise ValueError(
                f"{where}: it has {old!r}, the reduced config would set {value!r}; "
                "the config tells it by position: keep blocks that fit it"
            )
        yield key, value
