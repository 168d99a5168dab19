"""A shallower model from some of a deeper one's layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_stages.core.placed_errors import place_errors
from hf_stages.layers.blocks import stack_of
from hf_stages.transforms._depth import depth_change
from hf_stages.transforms._kept_blocks import KeptBlocks, as_indices
from hf_stages.transforms._peft import refuse_adapters
from hf_stages.transforms._recurrence import refuse_recurrence
from hf_stages.transforms.base import Transform

_BIAS = ".relative_attention_bias.weight"


@dataclass(frozen=True)
class ReduceLayers(Transform):
    """Only the layers ``keep`` stay, in that order; embeddings, pooler, final norm and head are left as they are.

    A student that begins as every other layer of its teacher needs no pretraining of its own (DistilBERT,
    https://arxiv.org/abs/1910.01108; XTC, https://arxiv.org/abs/2206.01859). Layers count from 1, or from the end:
    ``-1`` is the last. The config says the new depth, so that ``from_pretrained`` loads what is saved; a model whose
    config cannot say it is refused. Each kept parameter takes its optimizer moments along.

    >>> ReduceLayers([2, 4, -1])
    ReduceLayers(keep=(2, 4, -1), stack=None)
    """

    keep: Sequence[int]
    """Numbers of the layers that stay, such as ``[2, 4, 6]``."""
    stack: str | None = None
    """Which stack, where a model has several: ``"encoder"`` or ``"decoder"``."""

    def __post_init__(self) -> None:
        keep = tuple(self.keep) if isinstance(self.keep, list | tuple) else ()
        if not keep or not all(isinstance(layer, int) and not isinstance(layer, bool) and layer for layer in keep):
            raise ValueError(
                "ReduceLayers: keep: expected a list of layers such as [2, 4, -1], counted from 1 or from the end, "
                f"got {self.keep!r}"
            )
        if len(set(keep)) < len(keep):
            raise ValueError(f"ReduceLayers: keep: expected each layer once, got {list(keep)}")
        object.__setattr__(self, "keep", keep)

    def __call__(self, model: Any) -> Any:
        refuse_adapters(model, where="ReduceLayers")
        refuse_recurrence(model, where="ReduceLayers")
        if not isinstance(model, PreTrainedModel):
            raise ValueError(f"ReduceLayers: expected a transformers model, got a {type(model).__name__}")
        kind = type(model).__name__
        with place_errors(f"ReduceLayers: {kind}", drop=f"{kind}: "):
            path, blocks = stack_of(model, self.stack)
            blocks_kept = KeptBlocks(path, len(blocks), as_indices(self.keep, len(blocks)))
            change = depth_change(model, blocks_kept)
        _move_biases(blocks, blocks_kept, change.biases)
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.ModuleList(blocks[index] for index in blocks_kept.kept))
        change.apply(model)
        return model

    def moves(self, before: Sequence[str], after: Sequence[str]) -> dict[str, list[str]]:
        """Moments go from each kept block to its new place."""
        known, blocks_kept = set(after), _kept_blocks(self, before, after)
        if blocks_kept is None:
            return {}
        moves = {}
        for name in before:
            # T5's biases stay in the first block, whichever that is.
            first = name.endswith(_BIAS) and name.startswith(f"{blocks_kept.path}.0.") and name in known
            new = name if first else blocks_kept.new_name(name)
            if new in known:
                moves[name] = [new]
        return moves


def _move_biases(blocks: nn.ModuleList, blocks_kept: KeptBlocks, biases: Sequence[str]) -> None:
    """Move position biases, which T5's first block holds for all, to the new first block."""
    first, new = blocks[0], blocks[blocks_kept.kept[0]]
    for name in biases:
        parent, _, leaf = name.rpartition(".")
        setattr(new.get_submodule(parent), leaf, first.get_submodule(name))
        delattr(first.get_submodule(parent), leaf)


def _kept_blocks(transform: ReduceLayers, before: Sequence[str], after: Sequence[str]) -> KeptBlocks | None:
    """Find the stack that was reduced by the names alone: the list that got shorter, or was at least long enough.

    None where several stacks could be meant (all blocks of one of two stacks, in another order): it is better to lose
    moments than to use those of other weights.
    """
    old, new = _lists(before), _lists(after)
    most = max(abs(layer) for layer in transform.keep)
    fits = [path for path, depth in old.items() if new.get(path) == len(transform.keep) and most <= depth]
    fits = [path for path in fits if old[path] != new[path]] or fits
    named = [path for path in fits if f".{transform.stack}." in f".{path}."] if transform.stack else fits
    if len(named) != 1:
        return None
    return KeptBlocks(named[0], old[named[0]], as_indices(transform.keep, old[named[0]]))


def _lists(names: Sequence[str]) -> dict[str, int]:
    """The outermost numbered list in each name -> how many numbers it has."""
    found: dict[str, set[str]] = {}
    for name in names:
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if at is not None:
            found.setdefault(".".join(parts[:at]), set()).add(parts[at])
    return {path: len(numbers) for path, numbers in found.items()}
