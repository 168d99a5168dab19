"""Where a model's blocks are: the list of layers that hidden states pass one after another."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def stacks_of(model: Any) -> dict[str, tuple[str, nn.ModuleList]]:
    """Each stack's name -> its dotted name in the model (in the base model, where PEFT wraps one) and its blocks.

    A single stack is called ``""``. Several are called by what tells their dotted names apart: ``encoder`` and
    ``decoder``, ``vision_tower`` and ``language_model``. Only names and classes are read: the meta device will do.
    """
    base = base_of(model)
    unsplit = set(getattr(base, "_no_split_modules", None) or ())
    found: dict[str, nn.ModuleList] = {}
    for path, module in base.named_modules():
        # Lists inside a block are its parts (experts, T5's sublayers); named_modules comes to the outer one first.
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and not inside and len(module) and _all_blocks(module, unsplit):
            found[path] = module
    if not found:
        found = _by_depth(base)
    names = _told_apart(list(found))
    return {name: (path, found[path]) for name, path in zip(names, found, strict=True)}


def stack_of(model: Any, stack: str | None = None) -> tuple[str, nn.ModuleList]:
    """The stack of that name, as in ``stacks_of``. It need not, and must not, be named where there is one alone."""
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
    """The blocks of the model, or of one of its stacks."""
    return stack_of(model, stack)[1]


def base_of(model: Any) -> Any:
    """The transformers model: what a PEFT model wraps, else the model itself."""
    return getattr(model, "get_base_model", lambda: model)()


def _all_blocks(modules: nn.ModuleList, unsplit: set[str]) -> bool:
    # Models from outside transformers may have plain modules, which _no_split_modules then names.
    return all(isinstance(m, GradientCheckpointingLayer) or type(m).__name__ in unsplit for m in modules)


def _by_depth(base: nn.Module) -> dict[str, nn.ModuleList]:
    """Models without gradient checkpointing (MPNet, XLNet): the one list of equal modules as long as the config says."""
    depth = getattr(getattr(base, "config", None), "num_hidden_layers", None)
    lists = {path: m for path, m in base.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth}
    lists = {path: m for path, m in lists.items() if not any(path.startswith(f"{outer}.") for outer in lists)}
    # XLM keeps attentions, norms and feed-forwards in a list each: no list holds the blocks.
    return lists if len(lists) == 1 and len({type(m) for blocks in lists.values() for m in blocks}) == 1 else {}


def _told_apart(paths: list[str]) -> list[str]:
    """
    >>> _told_apart(["model.layers"]), _told_apart(["model.encoder.layers", "model.decoder.layers"])
    ([''], ['encoder', 'decoder'])
    >>> _told_apart(["a.text.layers", "a.image.layers", "b.layers"])
    ['a.text', 'a.image', 'b']
    """
    if len(paths) == 1:
        return [""]
    parts = [path.split(".") for path in paths]
    common = 0
    while len({p[common] if common < len(p) else None for p in parts}) == 1:
        common += 1
    # A name is the first part that no other path has there, else all parts of the path but the list's own name.
    first = [p[common] if common < len(p) else "" for p in parts]
    names = [f if first.count(f) == 1 and f else ".".join(p[common:-1]) for f, p in zip(first, parts, strict=True)]
    return [n if names.count(n) == 1 else path for n, path in zip(names, paths, strict=True)]
