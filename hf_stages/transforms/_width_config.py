"""What of a transformers model knows how wide its blocks are inside: its config, and attributes of its modules.

As with the depth, a skeleton built from the changed config shows all of it. Where a config can say that there are fewer
heads of the same size (Llama, T5, ViT: ``head_dim``, ``d_kv``), the skeleton is the model as ``from_pretrained`` will build it.
Where it cannot (BERT, GPT-2: a head is ``hidden_size / num_attention_heads`` wide), a skeleton that is as narrow outside as
inside shows what the attention holds; only that is taken over, and stock ``from_pretrained`` refuses the saved shapes.
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

from hf_stages.transforms._depth import _owner, _skeleton, _way
from hf_stages.transforms._width_parts import Widths

Shape = tuple[int, ...]
_NEURONS = ("intermediate_size", "d_ff", "ffn_dim", "hidden_dim", "n_inner")


@dataclass(frozen=True)
class Change:
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
        """The same for all heads side by side."""
        old, new = self.old, self.new
        return {(old.across, new.across), (old.groups * old.size, new.groups * new.size)}


def widths_said(model: Any, path: str) -> Widths:
    """A stack's heads as its config has them; the neurons are not looked for."""
    config = _spoken(model.config, model, path)
    name = _name(config, _head_names(path))
    if name is None:
        raise ValueError(f"{path}: its config has no number of attention heads (num_attention_heads)")
    heads = int(getattr(config, name))
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Widths(heads, int(getattr(config, "num_key_value_heads", None) or heads), int(size))


def said(model: Any, change: Change) -> dict[str, int]:
    """What a stack's config must say after: key -> value. ValueError where it has no key for it."""
    config, old, new = _spoken(model.config, model, change.path), change.old, change.new
    keys: dict[str, int] = {}
    if new.heads != old.heads:
        keys[_name(config, _head_names(change.path)) or ""] = new.heads
        keys["head_dim"] = new.size
        if getattr(config, "num_key_value_heads", None) is not None:
            keys["num_key_value_heads"] = new.groups
    if new.neurons != old.neurons:
        role = _role(change.path)
        names = [f"{role}_ffn_dim", *_NEURONS] if role else list(_NEURONS)
        name = _name(config, names, old.neurons)
        if name is None:
            raise ValueError(
                f"{change.path}: its blocks have {old.neurons} neurons, but no number in the config says so "
                "(intermediate_size and the like); leave them: ffn=1.0"
            )
        keys[name] = new.neurons
    return keys


def shared(model: Any, changes: Sequence[Change], others: Iterable[str]) -> str | None:
    """Another stack that the same number in the config speaks of, as T5's one ``num_heads`` does of both."""
    for change in changes:
        mine = _spoken(model.config, model, change.path)
        for path in others:
            same = _spoken(model.config, model, path) is mine
            if same and set(said(model, change)) & set(said(model, replace(change, path=path))) - {"head_dim"}:
                return path
    return None


def skeleton(
    model: Any,
    changes: Sequence[Change],
    shapes: Mapping[str, Shape],
    cut: AbstractSet[str],
    cores: AbstractSet[str],
) -> nn.Module:
    """What the changed config builds, in shape alone; ValueError where nothing it builds fits what will be there.

    ``shapes`` are those of the whole state dict after the cut; ``cut`` names the modules that are, ``cores`` the attentions.
    """
    rigid = {name for name in shapes if _within(name, cores) and name.rpartition(".")[0] not in cut}
    new = changed(model, changes)
    try:
        built = _skeleton(model, new)
        _compare(built, shapes, [], rigid)
        return built
    except ValueError:
        hidden = []
        for change in changes:
            config = _spoken(new, model, change.path)
            hidden.append((int(_spoken(model.config, model, change.path).hidden_size), change.new.across))
            config.hidden_size = change.new.across
        if all(wide == narrow for wide, narrow in hidden):
            raise
        _check_saved(changed(model, changes))
    built = _skeleton(model, new)
    _compare(built, shapes, hidden, rigid)
    return built


def attributes(
    model: Any, built: nn.Module, changes: Sequence[Change], cut: AbstractSet[str], cores: AbstractSet[str]
) -> list[tuple[str, str, int]]:
    """(module, attribute, value): the numbers that modules keep of what was cut."""
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


def changed(model: Any, changes: Sequence[Change]) -> PretrainedConfig:
    """A copy of the model's config that says the new widths."""
    root = copy.deepcopy(model.config)
    for change in changes:
        _set(_spoken(root, model, change.path), said(model, change))
    return root


def tell(model: Any, changes: Sequence[Change]) -> None:
    """Change the model's own config, and the copies of it that T5's stacks hold."""
    held = {id(c): c for m in model.modules() if isinstance(c := vars(m).get("config"), PretrainedConfig)}
    sets: dict[int, tuple[Any, dict[str, int]]] = {}
    for change in changes:
        spoken, keys = _spoken(model.config, model, change.path), said(model, change)
        copies = [c for c in held.values() if type(c) is type(spoken) and _way(model.config, c) is None]
        for config in (spoken, *copies):
            sets.setdefault(id(config), (config, {}))[1].update(keys)
    for config, keys in sets.values():
        _set(config, keys)


# ---- the config -----------------------------------------------------------------------------------------------------


def _spoken(root: Any, model: Any, path: str) -> Any:
    """The part of ``root`` that speaks of a stack; of a copy, as T5's stacks hold, what it is a copy of."""
    for key in _way(model.config, _owner(model, path)) or ():
        root = getattr(root, key)
    return root


def _set(config: Any, keys: Mapping[str, int]) -> None:
    for key, value in keys.items():
        setattr(config, key, value)


def _role(path: str) -> str:
    return next((part for part in reversed(path.split(".")) if part in ("encoder", "decoder")), "")


def _head_names(path: str) -> list[str]:
    role = _role(path)
    return [f"{role}_attention_heads", "num_attention_heads"] if role else ["num_attention_heads"]


def _name(config: Any, names: Iterable[str], value: int | None = None) -> str | None:
    """The first of these that the config has, with that value. GPT-2's ``n_inner`` may be None: 4 x the width."""
    for name in names:
        own = getattr(config, name, None)
        if (value is None and own is not None) or (value is not None and own == value):
            return name
        if value is not None and own is None and name in vars(config):
            return name
    return None


def _check_saved(config: Any) -> None:
    """Saving checks the config as well: better now than at the end of a stage."""
    try:
        getattr(config, "validate", lambda: None)()
    except Exception as error:
        said = str(error.__cause__ or error).rstrip(".")
        raise ValueError(
            f"its config refuses the number of heads that would stay: {said}; take another fraction"
        ) from error


# ---- the skeletons --------------------------------------------------------------------------------------------------


def _compare(
    built: nn.Module, shapes: Mapping[str, Shape], hidden: Sequence[tuple[int, int]], rigid: AbstractSet[str]
) -> None:
    """ValueError where the skeleton has other tensors. ``hidden``: (wide, narrow) where it is narrower outside too."""
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
    """Equal, or as many times the narrow width as the wide one."""
    return want == got or any(want % wide == 0 and got == want // wide * narrow for wide, narrow in hidden)


def _within(name: str, cores: AbstractSet[str]) -> bool:
    return any(name == core or name.startswith(f"{core}.") for core in cores)
