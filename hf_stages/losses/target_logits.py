"""Choose the logits that a loss between two models runs over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_stages.models.real_tokens import continues_example, real_tokens

_FIELDS = ("labels", "input_ids", "pixel_values", "input_features", "input_values", "inputs_embeds")


@dataclass(frozen=True)
class Targets:
    """The positions of a batch whose logits count.

    Positions count whose label is not -100. Where a batch has no labels, and with ``on="tokens"``, all that are not
    padding count. A prediction made at padding never counts (a left-padded causal model's for the first token), so
    the number does not depend on the side or the amount of padding. Where logits are by row, all rows count.
    """

    kind: str | None = None
    """``rows``; ``tokens``: a position's logits are for its own label; ``next``: for the label after it; ``decoder``:
    the tokens of an encoder-decoder's decoder. None: an unknown architecture, taken for tokens if labels are per
    token."""
    on: str = "labels"
    """``labels``, or ``tokens``: all real tokens."""
    pad: int | None = None
    """The padding token, to find padding in ``decoder_input_ids`` that have no mask."""

    def items(self, batch: Mapping[str, Any]) -> Any:
        mask = self._mask(batch)
        return _rows(batch) if mask is None else mask.sum()

    def index(self, batch: Mapping[str, Any], shape: torch.Size) -> torch.Tensor:
        """Return rising numbers into the flattened positions of logits of this ``shape`` (without the classes)."""
        mask = self._mask(batch)
        expected = (_rows(batch),) if mask is None else tuple(mask.shape)
        # A multiple-choice model may leave choices apart or make rows of them: the order of positions is the same.
        if tuple(shape) != expected and (shape[-1:] != expected[-1:] or shape.numel() != math.prod(expected)):
            raise ValueError(
                f"expected logits for {' x '.join(map(str, expected))} {'rows' if mask is None else 'tokens'}, as the "
                f"batch has, got {' x '.join(map(str, shape))}; a model that adds tokens (prompt tuning) or gives "
                "several outputs per row cannot be matched here"
            )
        return torch.arange(expected[0]) if mask is None else mask.flatten().nonzero().squeeze(-1)

    def _mask(self, batch: Mapping[str, Any]) -> torch.Tensor | None:
        """Make a mask in the shape of the tokens, true where logits count; None where logits are by row."""
        if self.kind == "rows":
            return None
        labels = _tensor(batch, "labels")
        if self.kind is None:
            per_token = labels is not None and labels.dim() == 2 and not labels.is_floating_point()
            return Targets("tokens", self.on, self.pad)._mask(batch) if per_token else None
        if self.kind == "next":
            return self._before_next(batch)
        if labels is not None and self.on == "labels":
            return labels.ne(-100)
        return self._decoded(batch) if self.kind == "decoder" else _real(batch)

    def _before_next(self, batch: Mapping[str, Any]) -> torch.Tensor:
        shifted, labels = _tensor(batch, "shift_labels"), _tensor(batch, "labels")
        if self.on == "tokens" or (shifted is None and labels is None):
            real = _real(batch)
            goes_on = continues_example(batch)
            moved = _moved(real) & real
            return moved if goes_on is None else torch.cat((moved[..., :-1] & goes_on, moved[..., -1:]), -1)
        wanted = shifted.ne(-100) if shifted is not None else _moved(labels.ne(-100))
        mask = _tensor(batch, "attention_mask")
        return wanted & mask.ne(0) if mask is not None and mask.shape == wanted.shape else wanted

    def _decoded(self, batch: Mapping[str, Any]) -> torch.Tensor:
        mask, labels = _tensor(batch, "decoder_attention_mask"), _tensor(batch, "labels")
        if mask is not None:
            return mask.ne(0)
        if labels is not None:
            return labels.ne(-100)
        ids = _tensor(batch, "decoder_input_ids")
        if ids is None:
            raise ValueError(
                f"expected labels or decoder_input_ids in the batch of an encoder-decoder, got {sorted(batch)}; check "
                "the data collator"
            )
        if self.pad is None:
            return torch.ones_like(ids, dtype=torch.bool)
        # Padding is the run of pad tokens at the end; the first token may be the pad token and is none (T5).
        kept = ids.ne(self.pad).flip(-1).cumsum(-1).flip(-1).gt(0)
        kept[..., 0] = True
        return kept


def _tensor(batch: Mapping[str, Any], key: str) -> Any:
    value = batch.get(key)
    return value if torch.is_tensor(value) else None


def _moved(mask: torch.Tensor) -> torch.Tensor:
    """Move a mask so that each position has the value of the next one; after the last comes nothing."""
    return torch.cat((mask[..., 1:], torch.zeros_like(mask[..., :1])), -1)


def _real(batch: Mapping[str, Any]) -> torch.Tensor:
    mask, ids, embedded = (_tensor(batch, key) for key in ("attention_mask", "input_ids", "inputs_embeds"))
    if (real := real_tokens(batch)) is not None:
        return real
    if mask is not None:
        if mask.dim() != 2:
            raise ValueError(
                f"expected an attention_mask of (batch, tokens) to tell padding by, got {tuple(mask.shape)}; give "
                "labels, with -100 where no token is"
            )
        return mask.ne(0)
    if ids is not None:
        return torch.ones_like(ids, dtype=torch.bool)
    if embedded is not None:
        return torch.ones(embedded.shape[:2], dtype=torch.bool, device=embedded.device)
    raise ValueError(
        f"expected labels, attention_mask or input_ids in the batch, got {sorted(batch)}; check the collator"
    )


def _rows(batch: Mapping[str, Any]) -> int:
    for value in (*(batch.get(key) for key in _FIELDS), *batch.values()):
        if torch.is_tensor(value) and value.dim() > 0:
            return value.shape[0]
    raise ValueError(f"the batch holds no tensor to count rows of, only {sorted(batch)}; check the data collator")
