"""Packs several examples into one row, none of which sees another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_stages.core.curves import Curve
from hf_stages.data.collators._packing_layouts import (
    MASKED,
    Layout,
    attention_window,
    block_mask,
    check_layout,
    find_layout,
    positions_of,
)
from hf_stages.data.collators.base import (
    IGNORED,
    LONGER,
    BaseCollator,
    Document,
    check_choice,
    check_length,
    cut_to_length,
    pad_id,
    pad_runs,
    padding_value,
    read_curve,
    read_documents,
    refuse_pairs,
    value_at,
)
from hf_stages.data.collators.bin_packing import assign_rows

_UNSHIFTED = {"XLMWithLMHeadModel", "XLNetLMHeadModel", "FlaubertWithLMHeadModel"}
"""Causal by transformers' mapping, but these models do not shift labels."""
MASKS = ("auto", "positions", "flat", "blocks", "additive")


@dataclass(frozen=True)
class Packed(BaseCollator):
    """Packs the examples of a micro-batch into rows of at most ``length`` tokens.

    Losses and gradients are those of the examples one by one: positions begin again with each example, attention stays
    inside it, and no example's first token is predicted from the example before.

    A micro-batch still has ``per_device_train_batch_size`` examples, but fewer rows and hardly any padding. Examples
    without a token are left out.

    >>> pack = Packed(6, shift=True, mask="positions")
    >>> pack([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}])["position_ids"].tolist()
    [[0, 1, 2, 0, 1]]
    """

    length: int | Curve
    """The most tokens of a row: a number, or a curve over the stage's progress, which is rounded."""
    collator: Any = None
    """Another collator that makes inputs and labels, one per token. None: the rows hold them; where there are no
    ``labels``, causal models predict the ``input_ids``."""
    longer: Literal["error", "split", "truncate"] = "error"
    """What happens to a longer example: an error, pieces that do not see each other, or its end is cut off."""
    shift: bool | None = None
    """Whether the model shifts labels, as causal models do. None: the model's class tells."""
    mask: Literal["auto", "positions", "flat", "blocks", "additive"] = "auto"
    """How the model is told which tokens belong together: by ``positions`` that begin again (transformers makes the
    mask), by such positions in a single row (``flat``, for flash attention), or by a mask of (rows, 1, tokens, tokens),
    true (``blocks``) or ``additive``. ``auto``: the first way that works for the model, tried on a few tokens."""
    causal: bool | None = None
    """Whether a token sees only those before it, for a mask of (rows, 1, tokens, tokens). None: the same as ``shift``;
    ``auto`` finds it out."""
    first: int = 0
    """The position of an example's first token: 0, or for RoBERTa the padding token's number plus 1. ``auto`` finds it
    out."""
    tokenizer: Any = None
    """Gives the padding token. None: the trainer's."""

    def __post_init__(self) -> None:
        read_curve(self, "length")
        check_length("Packed", self.length)
        check_choice("Packed", "longer", self.longer, LONGER)
        check_choice("Packed", "mask", self.mask, MASKS)
        refuse_pairs("Packed", self.collator)

    def build(self, tokenizer: Any = None, model: Any = None) -> Packed:
        ready = super().build(tokenizer, model)
        if model is None:
            return ready
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise ValueError(
                f"Packed: {type(model).__name__} is an encoder with a decoder; packing one is not supported"
            )
        if ready.shift is None:
            ready = replace(ready, shift=_shifts_labels(model))
        if ready.mask == "auto":
            ready = replace(ready, **find_layout(model)._asdict())
            _check_window(ready, model)
        return ready

    def check_teacher(self, model: Any) -> None:
        """Refuse a teacher that does not keep the examples of the student's rows apart."""
        check_layout(model, Layout(self.mask, self.first, bool(self.shift if self.causal is None else self.causal)))
        _check_window(self, model)

    def __call__(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        if self.shift is None or self.mask == "auto":
            raise ValueError(
                "Packed: it has not met its model, so it does not know how to mask; StagedTrainer introduces them; "
                "elsewhere use Packed(...).build(tokenizer, model), or give shift= and mask="
            )
        found, apart = read_documents("Packed", rows, self.collator)
        _refuse_values_per_example(apart)
        length = value_at(self.length, None, whole=True)
        runs = [self._targets(run) for doc in found for run in cut_to_length("Packed", doc, length, self.longer)]
        if not runs:
            raise ValueError(
                f"Packed: a micro-batch of {len(rows)} examples without a single token; drop empty examples"
            )
        counts = [len(run["input_ids"]) for run in runs]
        packed = [list(range(len(runs)))] if self.mask == "flat" else assign_rows(counts, length)
        return self._batch(runs, packed, [[counts[i] for i in row] for row in packed])

    def _targets(self, run: Document) -> Document:
        if not self.shift:
            return run
        labels = run.get("labels", run["input_ids"]).clone()
        labels[0] = IGNORED  # the logits before it belong to another example
        return {**run, "labels": labels}

    def _batch(self, runs: list[Document], rows: list[list[int]], counts: list[list[int]]) -> dict[str, torch.Tensor]:
        width = max(map(sum, counts))
        batch = {
            key: pad_runs(
                [torch.cat([runs[i][key] for i in row]) for row in rows],
                width,
                padding_value(key, pad_id(self.tokenizer)),
            )
            for key in runs[0]
        }
        batch["position_ids"] = positions_of(counts, width, self.first)
        if self.mask in MASKED:
            causal = bool(self.shift if self.causal is None else self.causal)
            batch["attention_mask"] = block_mask(counts, width, causal=causal, additive=self.mask == "additive")
        return batch


def _refuse_values_per_example(apart: dict[str, torch.Tensor]) -> None:
    if apart:
        raise ValueError(
            f"Packed: {', '.join(apart)}: expected one value per token, got one per example; a packed row holds many "
            "examples, and a model that answers once per row cannot tell them apart: pad instead (Lengths, or the "
            "model's usual collator)"
        )


def _check_window(packed: Packed, model: Any) -> None:
    window, length = attention_window(model.config), packed.length
    most = length if isinstance(length, int) else max(length(i / 64) for i in range(65))
    if packed.mask in MASKED and window is not None and most > window:
        raise ValueError(
            f"Packed: length: {type(model).__name__} has layers that see {window} tokens far, and is told what belongs "
            f"together by a mask that overrides this; expected at most {window} tokens, got {length}"
        )


def _shifts_labels(model: Any) -> bool:
    base = getattr(model, "get_base_model", lambda: model)()
    values = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    named = {n for v in values for n in ([v] if isinstance(v, str) else v)} - _UNSHIFTED
    causal = LOSS_MAPPING.get(getattr(base, "loss_type", None)) is ForCausalLMLoss
    return causal or not named.isdisjoint(cls.__name__ for cls in type(base).__mro__)
