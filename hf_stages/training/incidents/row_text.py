"""A row as text: the dataset's own words where it has some, else what the tokenizer makes of the tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hf_stages.core.randomness import preserve_random_state
from hf_stages.models.real_tokens import real_tokens
from hf_stages.training.incidents.row_places import RowPlace, row_of
from hf_stages.training.incidents.split_rows import SplitRow
from hf_stages.training.stage.stage_data import StageData

MOST_CHARACTERS = 2000


def text_of_row(row: SplitRow[RowPlace], data: StageData, tokenizer: Any) -> str | None:
    """Return the text of a row, shortened; None where there is none."""
    text = _written(row, data) or _decoded(row.columns, tokenizer)
    return text[:MOST_CHARACTERS] if text else None


def _written(row: SplitRow[RowPlace], data: StageData) -> str | None:
    """Return the row's columns of text, as the dataset holds them."""
    if len(row.places) != 1:
        return None
    try:
        with preserve_random_state():
            found = row_of(data, row.places[0])
    except Exception:  # a dataset of the user's, read once more: whatever it says, the row has tokens as well
        return None
    if not isinstance(found, Mapping):
        return None
    return "\n".join(value for value in found.values() if isinstance(value, str)) or None


def _decoded(columns: Mapping[str, Any], tokenizer: Any) -> str | None:
    ids: Any = columns.get("input_ids")
    decode = getattr(tokenizer, "decode", None)
    if decode is None or not torch.is_tensor(ids) or ids.is_floating_point():
        return None
    real = real_tokens(columns)
    kept = ids.flatten(0, -2)[real] if real is not None and real.shape == ids.flatten(0, -2).shape else ids.flatten()
    tokens, pad = kept.tolist(), getattr(tokenizer, "pad_token_id", None)
    while tokens and tokens[-1] == pad:  # where no mask says that it is padding
        tokens.pop()
    try:
        return str(decode(tokens))
    except Exception:  # tokens that this tokenizer does not have
        return None
