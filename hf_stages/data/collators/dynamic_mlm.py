"""Masks tokens differently in every epoch, at a rate that may change over the stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import xxhash

from hf_stages.core.curves import Curve
from hf_stages.data.collators.base import IGNORED, BaseCollator, pad_batch, read_curve, read_documents, value_at


@dataclass(frozen=True)
class DynamicMLM(BaseCollator):
    """Masks tokens for masked language modelling: a share ``rate`` is to be predicted, the others' labels are -100.

    80 % of the chosen tokens become the mask token, 10 % become another token and 10 % stay (BERT, arXiv 1810.04805).
    The choice is made again in every epoch (RoBERTa, 1907.11692). High rates help early and low rates late
    (2305.15096): ``rate="Linear(0.3, 0.15)"``. The choice is seeded by stage, epoch and batch, so that a resumed run
    masks the same tokens. In evaluation it depends on the tokens alone, so that two evaluations differ only by the
    model.

    >>> DynamicMLM(rate="Linear(0.3, 0.15)").rate(1.0)
    0.15
    """

    rate: float | Curve = 0.15
    """The share of tokens to predict: a number, or a curve over the stage's progress."""
    masked: float = 0.8
    """The share of the chosen tokens that becomes the mask token."""
    replaced: float = 0.1
    """The share of the chosen tokens that becomes a random token; the rest stays."""
    collator: Any = None
    """Another collator that makes the inputs. None: rows hold ``input_ids``."""
    fixed: bool = False
    """Whether the same tokens get the same masks every time, in training too."""
    tokenizer: Any = None
    """A tokenizer with a mask token. None: the trainer's."""

    def __post_init__(self) -> None:
        read_curve(self, "rate")
        rates = [self.rate(i / 64) for i in range(65)] if isinstance(self.rate, Curve) else [self.rate]
        if not all(isinstance(r, int | float) and not isinstance(r, bool) and 0 < r <= 1 for r in rates):
            raise ValueError(f"DynamicMLM: rate: expected a share above 0 and at most 1 everywhere, got {self.rate}")
        if not 0 <= self.masked <= 1 or not 0 <= self.replaced <= 1 - self.masked + 1e-9:
            raise ValueError(
                f"DynamicMLM: masked, replaced: expected shares that sum to at most 1, got {self.masked} and "
                f"{self.replaced}"
            )

    def build(self, tokenizer: Any = None, model: Any = None) -> DynamicMLM:
        ready = super().build(tokenizer, model)
        if getattr(ready.tokenizer, "mask_token_id", None) is None:
            what = "none was given" if ready.tokenizer is None else f"{type(ready.tokenizer).__name__} has none"
            raise ValueError(f"DynamicMLM: tokenizer: expected one with a mask token, {what}")
        return ready

    def at(self, t: float | None) -> DynamicMLM:
        ready = super().at(t)
        return replace(ready, fixed=True) if t is None and not ready.fixed else ready

    def __call__(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        if getattr(self.tokenizer, "mask_token_id", None) is None:
            raise ValueError(
                "DynamicMLM: tokenizer: missing, or one without a mask token; use DynamicMLM(...).build(tokenizer), or "
                "give tokenizer="
            )
        found, apart = read_documents("DynamicMLM", rows, self.collator)
        apart = {key: value for key, value in apart.items() if key != "labels"}
        if not any(len(document["input_ids"]) for document in found):
            raise ValueError(
                f"DynamicMLM: a micro-batch of {len(rows)} examples without a single token; drop empty examples"
            )
        batch = pad_batch(found, self.tokenizer)
        special = torch.isin(batch["input_ids"], torch.tensor(self.tokenizer.all_special_ids))
        special |= batch.pop("special_tokens_mask", torch.zeros(())).bool()
        ids, labels = self._mask(batch["input_ids"], batch["attention_mask"].bool() & ~special)
        return {**batch, "input_ids": ids, "labels": labels, **apart}

    def _mask(self, ids: torch.Tensor, eligible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return masked inputs and their labels. Every token takes three random numbers, whatever is chosen."""
        rate = value_at(self.rate, None, whole=False)
        digest = xxhash.xxh3_64_intdigest(ids.numpy().tobytes()) >> 1
        seed = digest if self.fixed else int(torch.randint(2**62, ()))  # the batch was fetched under a seed
        generator = torch.Generator().manual_seed(seed)
        chosen, fate = torch.rand((2, *ids.shape), generator=generator)
        others = torch.randint(len(self.tokenizer), ids.shape, generator=generator)
        picked = (chosen < rate) & eligible
        new = torch.where(picked & (fate < self.masked), self.tokenizer.mask_token_id, ids)
        swapped = picked & (fate >= self.masked) & (fate < self.masked + self.replaced)
        return torch.where(swapped, others, new), ids.masked_fill(~picked, IGNORED)
