"""Which tokens of a micro-batch count in losses over hidden states and attention: every real token, once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hf_stages.layers.blocks import base_of, stack_of

_IDS = "input_ids"
_LENGTHS_METHOD = "_get_feat_extract_output_lengths"


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch that enter one stack of a model.

    The attention mask of text says which tokens are padding. A multiple-choice model runs each choice as a row. Where a
    batch has no mask (patches of images), each example counts once. Where a model shortens its input (frames of
    speech), the mask is shortened in the same way.
    """

    stack: str | None = None
    """The stack's name, as in ``stacks_of``."""
    source: str = _IDS
    """The name of the input that enters the stack: its ``main_input_name``."""
    shortened: Callable[[torch.Tensor], Any] | None = None
    """The model's function from lengths of the input to lengths of the states."""

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Count the tokens that count, or the examples where the batch has no tokens."""
        mask = self.mask(batch)
        if mask is not None:
            return mask.sum()
        shape = self._shape(batch)
        return shape[0] * shape[1] if shape is not None else self._examples(batch)

    def weights(self, batch: Mapping[str, Any], like: torch.Tensor) -> torch.Tensor:
        """Return weights (rows, tokens) for states ``like`` (rows, tokens, ...); their sum is ``items``."""
        rows, tokens = like.shape[:2]
        mask = self.mask(batch)
        shape = self._shape(batch) if mask is None else tuple(mask.shape)
        if shape is not None and shape != (rows, tokens):
            raise ValueError(
                f"the batch has {shape[0]} rows of {shape[1]} tokens, but the model has states of {rows} x {tokens}: a "
                "model that shortens or lengthens its input (prompt tuning, windows of a fixed size) is not supported "
                "by this loss"
            )
        if mask is not None:
            return mask.to(torch.float32)
        if shape is None and rows % max(self._examples(batch), 1):
            raise ValueError(
                f"the batch has {self._examples(batch)} entries of {self.source}, but the model has states of {rows} "
                "rows, so no row is of "
                "one of them; leave this loss out"
            )
        share = 1.0 if shape is not None else self._examples(batch) / max(rows * tokens, 1)
        return torch.full((rows, tokens), share, device=like.device)

    def mask(self, batch: Mapping[str, Any]) -> torch.Tensor | None:
        """Return which tokens are real, as (rows, tokens); None where the batch does not say."""
        if self.stack == "decoder":
            mask: Any = batch.get("decoder_attention_mask")
            labels: Any = batch.get("labels")
            if mask is None and torch.is_tensor(labels) and labels.dim() >= 2 and not labels.is_floating_point():
                return labels.ne(-100).flatten(0, -2)
            return mask.ne(0).flatten(0, -2) if torch.is_tensor(mask) and mask.dim() >= 2 else None
        if self._reads_ids(batch):
            return real_tokens(batch)
        mask = batch.get("attention_mask")
        if not torch.is_tensor(mask) or mask.dim() != 2 or shape_of(batch) is not None:
            return None
        if self.shortened is None:
            return mask.ne(0)
        lengths, width = (self.shortened(torch.as_tensor(n)) for n in (mask.ne(0).sum(-1), mask.shape[-1]))
        return torch.arange(int(width), device=mask.device) < lengths[:, None]

    def same_example(self, batch: Mapping[str, Any]) -> torch.Tensor | None:
        """Return which pairs of real tokens are in one example, as (rows, tokens, tokens); None where it is not known.

        A row is one example, unless rows are packed: then masks or positions tell its examples apart (see
        ``real_tokens``).
        """
        real = self.mask(batch)
        if real is None:
            return None
        both = real[:, :, None] & real[:, None, :]
        if self.stack is not None or not self._reads_ids(batch):
            return both
        mask: Any = batch.get("attention_mask")
        if torch.is_tensor(mask) and mask.dim() == 4:
            visible = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0].eq(0)
            return both & (visible | visible.transpose(1, 2))  # a causal mask has one half of the pairs
        continues = continues_example(batch) if mask is None else None
        if continues is None:
            return both
        number = torch.nn.functional.pad((~continues).cumsum(-1), (1, 0))
        return both & number[:, :, None].eq(number[:, None, :])

    def rows(self, batch: Mapping[str, Any]) -> int:
        """Count the rows that the model runs. Each choice of a multiple-choice example is a row."""
        shape = shape_of(batch) if self._reads_ids(batch) else None
        return self._examples(batch) if shape is None else math.prod(shape[:-1])

    def _shape(self, batch: Mapping[str, Any]) -> tuple[int, int] | None:
        if self.stack != "decoder" and not self._reads_ids(batch):
            return None
        shape = shape_of(batch, "decoder_" if self.stack == "decoder" else "")
        return (math.prod(shape[:-1]), shape[-1]) if shape is not None else None

    def _reads_ids(self, batch: Mapping[str, Any]) -> bool:
        return self.source == _IDS or not torch.is_tensor(batch.get(self.source))

    def _examples(self, batch: Mapping[str, Any]) -> int:
        entering: Any = batch.get(self.source)
        return len(entering) if torch.is_tensor(entering) and entering.dim() else rows_of(batch)


def tokens_entering(model: Any, stack: str | None) -> Tokens:
    """Find the tokens that enter a stack: the innermost module around it that has a ``main_input_name`` says which."""
    base, path = base_of(model), stack_of(model, stack)[0].split(".")
    around = [base.get_submodule(".".join(path[:end])) for end in range(len(path) - 1, -1, -1)]
    source = next((m.main_input_name for m in around if isinstance(getattr(m, "main_input_name", None), str)), _IDS)
    shorten = next((m._get_feat_extract_output_lengths for m in around if hasattr(m, _LENGTHS_METHOD)), None)
    if shorten is not None and "add_adapter" in inspect.signature(shorten).parameters:
        shorten = partial(shorten, add_adapter=False)  # the adapter comes after the blocks
    return Tokens(stack, source, shorten)


def shape_of(batch: Mapping[str, Any], prefix: str = "") -> torch.Size | None:
    """Return the shape of a batch's tokens, given as ids or embedded; None where it has none."""
    ids: Any = batch.get(f"{prefix}input_ids")
    embedded: Any = batch.get(f"{prefix}inputs_embeds")
    if torch.is_tensor(ids) and ids.dim() >= 2:
        return ids.shape
    return embedded.shape[:-1] if torch.is_tensor(embedded) and embedded.dim() >= 3 else None


def real_tokens(batch: Mapping[str, Any]) -> torch.Tensor | None:
    """Return which tokens are no padding, as (rows, tokens); None where the batch does not say.

    Packed rows have no mask of two dimensions, because the model would take a row for one sequence. In a mask of four
    dimensions padding does not attend to itself. In positions alone, padding neither continues an example nor begins
    one.
    """
    mask: Any
    ids: Any
    positions: Any
    mask, ids, positions = (batch.get(key) for key in ("attention_mask", "input_ids", "position_ids"))
    if torch.is_tensor(mask):
        if mask.dim() == 2 or mask.shape == shape_of(batch):
            return mask.ne(0).flatten(0, -2)
        if mask.dim() == 4 and mask.shape[-1] == mask.shape[-2]:
            own = mask[:, 0].diagonal(dim1=-2, dim2=-1)
            if own.dtype == torch.bool:
                return own
            return (
                None if bool(own.gt(0).any()) else own.eq(0)
            )  # 0 for what is visible; else the kind of mask is not known
        return None
    if mask is not None or not torch.is_tensor(positions) or positions.shape != getattr(ids, "shape", None):
        return None
    positions = positions.flatten(0, -2)
    real = torch.ones_like(positions, dtype=torch.bool)
    real[:, 1:] = positions[:, 1:].eq(0) | positions.diff(dim=-1).eq(1)
    return real


def continues_example(batch: Mapping[str, Any]) -> torch.Tensor | None:
    """Return whether the next token is in the same example, as (rows, tokens - 1); None without positions."""
    positions: Any = batch.get("position_ids")
    if not torch.is_tensor(positions) or (positions.dim() != 2 and positions.shape != shape_of(batch)):
        return None
    return positions.flatten(0, -2).diff(dim=-1).eq(1)


def rows_of(batch: Mapping[str, Any]) -> int:
    """Count the examples of a micro-batch."""
    for value in batch.values():
        if torch.is_tensor(value) and value.dim() > 0:
            return value.shape[0]
    raise ValueError(f"the batch holds no tensor to count rows of, only {sorted(batch)}; check the data collator")
