"""Checks that the model's embedding has a row for each token: without one, the first batch with the token fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.utils import logging

from hf_stages.core.stage import Recipe
from hf_stages.models.model_source import ModelSource

logger = logging.get_logger(__name__)

_SPECIAL = ("pad", "bos", "eos", "unk", "cls", "sep")


def check_vocabulary(recipe: Recipe, processing_class: Any, skeletons: Mapping[str, Any]) -> None:
    """Refuse a stage whose model, after its transforms, has fewer rows than the tokenizer has tokens.

    A pretrained model may come with added tokens that it has no rows for and never reads, such as Gemma's for images.
    These give a warning alone.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if not hasattr(tokenizer, "get_vocab"):
        return
    every = max(tokenizer.get_vocab().values(), default=-1) + 1
    pretrained = isinstance(recipe.model, str) or (
        isinstance(recipe.model, ModelSource) and recipe.model.config is None
    )
    needed = _rows_needed(tokenizer) if pretrained else every
    for stage in recipe.stages:
        rows = _embedding_rows(skeletons.get(stage.name))
        mend = f"add {{use: ResizeVocab, to: {every}}} to transforms, or set 'vocab_size' in the config to {every}"
        if rows is not None and rows < needed:
            raise ValueError(
                f"stage {stage.name!r}: model: its token embedding has {rows} rows, but the tokenizer has {every} "
                f"tokens; {mend}"
            )
        if rows is not None and rows < every:
            logger.warning(
                f"stage {stage.name!r}: model: added tokens of the tokenizer from {rows} to {every - 1} have no row; "
                f"if the data hold any, {mend}"
            )
            return


def _rows_needed(tokenizer: Any) -> int:
    """Return how many rows text needs: up to the highest token of text, or that begins, ends, splits or pads it."""
    added = set(getattr(tokenizer, "added_tokens_decoder", ()))
    own = [number for number in tokenizer.get_vocab().values() if number not in added]
    named = [getattr(tokenizer, f"{name}_token_id", None) for name in _SPECIAL]
    return max([*own, *(number for number in named if number is not None)], default=-1) + 1


def _embedding_rows(model: Any) -> int | None:
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return embedding.weight.shape[0] if isinstance(embedding, nn.Embedding) else None
