"""Changes that new widths inside the blocks need in a transformers model: in its config and in attributes of modules.

A skeleton built from the changed config shows them. Some configs can say that there are fewer heads of the same size
(Llama, T5, ViT: ``head_dim``, ``d_kv``); there the skeleton is the model that ``from_pretrained`` will build. Others
cannot (BERT, GPT-2: a head is ``hidden_size / num_attention_heads`` wide). There a skeleton that is as narrow outside
as inside shows the attention's attributes; only these are used, and stock ``from_pretrained`` refuses the saved shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from hf_stages.transforms._depth import build_from_config, config_around, keys_between
from hf_stages.transforms._width_parts import Widths

Shape = tuple[int, ...]
_NEURONS = ("intermediate_size", "d_ff", "ffn_dim", "hidden_dim", "n_inner")


@dataclass(frozen=True)
class WidthChange:
    """One stack's widths before and after."""

    path: str
    old: Widths
    new: Widths

    @property
    def pairs(self) -> set[tuple[int, int]]:
        """(before, after) of the numbers that modules keep."""
        each = (self.old.heads // self.old.groups, self.new.heads // self.new.groups)
        numbers = {(self.old.heads, self.new.heads), (self.old.groups, self.new.groups), each}
        return {*numbers, (self.old.neurons, self.new.neurons)}

    @property
    def across(self) -> set[tuple[int, int]]:
        """(before, after) of the width of all heads together."""
        old, new = self.old, self.new
        return {(old.across, new.across), (old.groups * old.size, new.groups * new.size)}


def widths_in_config(model: Any, path: str) -> Widths:
    """Return a stack's heads as its config has them; the neurons stay 0."""
    config = _config_of_stack(model.config, model, path)
    name = _first_key(config, _head_names(path))
    if name is None:
        raise ValueError(f"{path}: its config has no number of attention heads (num_attention_heads)")
    heads = int(getattr(config, name))
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Widths(heads, int(getattr(config, "num_key_value_heads", None) or heads), int(size))


def values_for(model: Any, change: WidthChange) -> dict[str, int]:
    """Return the values that a stack's config gets; ValueError where it has no key for one."""
    config, old, new = _config_of_stack(model.config, model, change.path), change.old, change.new
    keys: dict[str, int] = {}
    if new.heads != old.heads:
        keys[_first_key(config, _head_names(change.path)) or ""] = new.heads
        keys["head_dim"] = new.size
        if getattr(config, "num_key_value_heads", None) is not None:
            keys["num_key_value_heads"] = new.groups
    if new.neurons != old.neurons:
        role = _role(change.path)
        names = [f"{role}_ffn_dim", *_NEURONS] if role else list(_NEURONS)
        name = _first_key(config, names, old.neurons)
        if name is None:
            raise ValueError(
                f"{change.path}: its blocks have {old.neurons} neurons, but no number in the config says so "
                "(intermediate_size and the like); leave them: ffn=1.0"
            )
        keys[name] = new.neurons
    return keys


def stack_with_same_numbers(model: Any, changes: Sequence[WidthChange], others: Iterable[str]) -> str | None:
    """Return another stack that a changed number counts for too, as T5's one ``num_heads`` does for both stacks."""
    for change in changes:
        mine = _config_of_stack(model.config, model, change.path)
        for path in others:
            same = _config_of_stack(model.config, model, path) is mine
            if same and set(values_for(model, change)) & set(values_for(model, replace(change, path=path))) - {
                "head_dim"
            }:
                return path
    return None


def build_skeleton(
    model: Any,
    changes: Sequence[WidthChange],
    shapes: Mapping[str, Shape],
    cut: AbstractSet[str],
    cores: AbstractSet[str],
) -> nn.Module:
    """Build the changed config's model without values; ValueError where its shapes are not those after the cut.

    ``shapes`` are those of the whole state dict after the cut. ``cut`` names the modules that are cut, ``cores`` the
    attentions.
    """
    rigid = {name for name in shapes if _within(name, cores) and name.rpartition(".")[0] not in cut}
    new = changed_config(model, changes)
    try:
        built = build_from_config(model, new)
        _compare_shapes(built, shapes, [], rigid)
        return built
    except ValueError:
        hidden = []
        for change in changes:
            config = _config_of_stack(new, model, change.path)
            hidden.append((int(_config_of_stack(model.config, model, change.path).hidden_size), change.new.across))
            config.hidden_size = change.new.across
        if all(wide == narrow for wide, narrow in hidden):
            raise
        _check_savable(changed_config(model, changes))
    built = build_from_config(model, new)
    _compare_shapes(built, shapes, hidden, rigid)
    return built


def changed_attributes(
    model: Any, built: nn.Module, changes: Sequence[WidthChange], cut: AbstractSet[str], cores: AbstractSet[str]
) -> list[tuple[str, str, int]]:
    """Return (module, attribute, value) of numbers that modules keep and that the cut changes."""
    inner = {pair for change in changes for pair in change.pairs}
    across = {pair for change in changes for pair in change.across}
    found = []
    modules = dict(built.named_modules())
    for name, module in model.named_modules():
        within = _within(name, cores)
        if name in cut or (not within and isinstance(module, nn.Linear | nn.Embedding | Conv1D)):
            continue
        for key, value in vars(modules[name]).items():
            old = vars(module).get(key)
            if type(old) is not int or type(value) is not int or old == value or key.startswith("_"):
                continue
            if (old, value) in inner or (within and (old, value) in across):
                found.append((name, key, value))
            elif within:
                raise ValueError(
                    f"{name}.{key}: it has {old}, the reduced config would set {value}; leave the heads: heads=1.0"
                )
    return found


def changed_config(model: Any, changes: Sequence[WidthChange]) -> PretrainedConfig:
    """Return a copy of the model's config with the new widths."""
    root = copy.deepcopy(model.config)
    for change in changes:
        _set_values(_config_of_stack(root, model, change.path), values_for(model, change))
    return root


def update_configs(model: Any, changes: Sequence[WidthChange]) -> None:
    """Change the model's own config, and the copies of it that T5's stacks hold."""
    held = {id(c): c for m in model.modules() if isinstance(c := vars(m).get("config"), PretrainedConfig)}
    sets: dict[int, tuple[Any, dict[str, int]]] = {}
    for change in changes:
        spoken, keys = _config_of_stack(model.config, model, change.path), values_for(model, change)
        copies = [c for c in held.values() if type(c) is type(spoken) and keys_between(model.config, c) is None]
        for config in (spoken, *copies):
            sets.setdefault(id(config), (config, {}))[1].update(keys)
    for config, keys in sets.values():
        _set_values(config, keys)


# ---- the config -----------------------------------------------------------------------------------------------------


def _config_of_stack(root: Any, model: Any, path: str) -> Any:
    """Return the part of ``root`` that describes a stack. T5's stacks hold copies of it."""
    for key in keys_between(model.config, config_around(model, path)) or ():
        root = getattr(root, key)
    return root


def _set_values(config: Any, keys: Mapping[str, int]) -> None:
    for key, value in keys.items():
        setattr(config, key, value)


def _role(path: str) -> str:
    return next((part for part in reversed(path.split(".")) if part in ("encoder", "decoder")), "")


def _head_names(path: str) -> list[str]:
    role = _role(path)
    return [f"{role}_attention_heads", "num_attention_heads"] if role else ["num_attention_heads"]


def _first_key(config: Any, names: Iterable[str], value: int | None = None) -> str | None:
    """Return the first key that the config has, with that value. GPT-2's ``n_inner`` may be None: 4 x the width."""
    for name in names:
        own = getattr(config, name, None)
        if (value is None and own is not None) or (value is not None and own == value):
            return name
        if value is not None and own is None and name in vars(config):
            return name
    return None


def _check_savable(config: Any) -> None:
    """Check the config as saving will, now rather than at the end of a stage."""
    try:
        getattr(config, "validate", lambda: None)()
    except Exception as error:
        reason = str(error.__cause__ or error).rstrip(".")
        raise ValueError(
            f"its config refuses the number of heads that would stay: {reason}; take another fraction"
        ) from error


# ---- the skeletons --------------------------------------------------------------------------------------------------


def _compare_shapes(
    built: nn.Module, shapes: Mapping[str, Shape], hidden: Sequence[tuple[int, int]], rigid: AbstractSet[str]
) -> None:
    """Refuse a skeleton with other tensors. ``hidden``: (wide, narrow) where it is narrower outside too."""
    there = {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    for name in dict.fromkeys([*shapes, *there]):
        want, got = shapes.get(name), there.get(name)
        if want is None or got is None:
            raise ValueError(f"{name}: only {'its config' if want is None else 'the model'} has it")
        pairs = [] if name in rigid else hidden
        if len(want) != len(got) or not all(_fits(*sizes, pairs) for sizes in zip(want, got, strict=True)):
            raise ValueError(
                f"{name}: it would have the shape {list(want)}, the reduced config would build {list(got)}; this "
                "architecture ties it to the number of heads or neurons in a way that is not known"
            )


def _fits(want: int, got: int, hidden: Sequence[tuple[int, int]]) -> bool:
    """Tell whether two sizes are equal, or the same multiple of the narrow width and of the wide one."""
    return want == got or any(want % wide == 0 and got == want // wide * narrow for wide, narrow in hidden)


def _within(name: str, cores: AbstractSet[str]) -> bool:
    return any(name == core or name.startswith(f"{core}.") for core in cores)
