"""Where a model's blocks are: the layers that hidden states pass through one after another."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_stages.layers.recurrent import RecurrentCore


def stacks_of(model: Any) -> dict[str, tuple[str, nn.ModuleList]]:
    """Return the dotted name and the blocks of each stack, by the stack's name; PEFT's wrappers are left out of names.

    A single stack is called ``""``. Several stacks are called by the part in which their dotted names differ:
    ``encoder`` and ``decoder``, ``vision_tower`` and ``language_model``. The model may lie on the meta device.
    """
    base = base_of(model)
    unsplit = set(getattr(base, "_no_split_modules", None) or ())
    found: dict[str, nn.ModuleList] = {}
    for path, module in base.named_modules():
        # Lists inside a block are its parts (experts, T5's sublayers); named_modules lists the outer one first.
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and not inside and len(module) and _are_blocks(module, unsplit):
            found[path] = module
    if not found:
        found = _stack_by_depth(base)
    names = _distinct_names(list(found))
    return {name: (path, found[path]) for name, path in zip(names, found, strict=True)}


def stack_of(model: Any, stack: str | None = None) -> tuple[str, nn.ModuleList]:
    """Return the dotted name and the blocks of one stack. A model's only stack has no name."""
    base, stacks = base_of(model), stacks_of(model)
    kind, names = type(base).__name__, ", ".join(map(repr, stacks))
    if hasattr(getattr(base, "config", None), "num_hidden_groups"):
        raise ValueError(f"{kind}: its layers share their weights, so that no block stands for one layer")
    if not stacks:
        raise ValueError(
            f"{kind}: expected an nn.ModuleList of blocks (GradientCheckpointingLayer, or classes named in "
            "_no_split_modules), found none"
        )
    if stack is None and len(stacks) > 1:
        raise ValueError(f"{kind}: it has {len(stacks)} stacks of blocks; say which: stack= one of {names}")
    if stack is not None and "" in stacks:
        raise ValueError(f"{kind}: it has one stack of blocks, got stack={stack!r}; leave stack out")
    if stack is not None and stack not in stacks:
        raise ValueError(f"{kind}: expected stack= one of {names}, got {stack!r}")
    return stacks[stack or ""]


def blocks_of(model: Any, stack: str | None = None) -> nn.ModuleList:
    """Return the blocks of a model, or of one of its stacks."""
    return stack_of(model, stack)[1]


def base_of(model: Any) -> Any:
    """Return the transformers model: what a PEFT model wraps, else the model itself."""
    return getattr(model, "get_base_model", lambda: model)()


def _are_blocks(modules: nn.ModuleList, unsplit: set[str]) -> bool:
    # Models from outside transformers may have plain modules as blocks, which _no_split_modules then names. A
    # recurrent core stands among the blocks as one of them.
    kinds = (GradientCheckpointingLayer, RecurrentCore)
    return all(isinstance(m, kinds) or type(m).__name__ in unsplit for m in modules)


def _stack_by_depth(base: nn.Module) -> dict[str, nn.ModuleList]:
    """Find the blocks of a model without gradient checkpointing (MPNet, XLNet) by the number in its config."""
    depth = getattr(getattr(base, "config", None), "num_hidden_layers", None)
    lists = {path: m for path, m in base.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth}
    lists = {path: m for path, m in lists.items() if not any(path.startswith(f"{outer}.") for outer in lists)}
    # XLM keeps attentions, norms and feed-forwards in a list each: no list holds the blocks.
    return lists if len(lists) == 1 and len({type(m) for blocks in lists.values() for m in blocks}) == 1 else {}


def _distinct_names(paths: list[str]) -> list[str]:
    """Return the shortest names that tell the paths apart.

    >>> _distinct_names(["model.layers"]), _distinct_names(["model.encoder.layers", "model.decoder.layers"])
    ([''], ['encoder', 'decoder'])
    >>> _distinct_names(["a.text.layers", "a.image.layers", "b.layers"])
    ['a.text', 'a.image', 'b']
    """
    if len(paths) == 1:
        return [""]
    parts = [path.split(".") for path in paths]
    common = 0
    while len({p[common] if common < len(p) else None for p in parts}) == 1:
        common += 1
    # A name is the first part that no other path has at that place, else all parts but the last.
    first = [p[common] if common < len(p) else "" for p in parts]
    names = [f if first.count(f) == 1 and f else ".".join(p[common:-1]) for f, p in zip(first, parts, strict=True)]
    return [n if names.count(n) == 1 else path for n, path in zip(names, paths, strict=True)]
