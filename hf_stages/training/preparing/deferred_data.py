"""Training data that Trainer cannot take when it is made, deferred until a stage reads it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers.trainer_utils import has_length

from hf_stages.core.references import source_names_in
from hf_stages.data.curricula.base import Curriculum


def defer_train_dataset(
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    staged: bool,
    prepares: bool,
    sources: Any,
) -> tuple[tuple[Any, ...], Any]:
    """Take the training data out of Trainer's arguments where Trainer cannot take it. Returns both.

    That is a curriculum, or a stream without a length, which needs none with stages. A trainer that prepares its data
    itself when it is made (``prepares``) finds out from the first row what it trains on; it is given that row.
    """
    names = list(signature.parameters)
    place = names.index("train_dataset") if "train_dataset" in names else len(args)
    given = kwargs.get("train_dataset", args[place] if place < len(args) else None)
    late = staged and given is not None and (not has_length(given) or (prepares and isinstance(given, dict | str)))
    if not late and not isinstance(given, Curriculum):
        return args, None
    shown = _first_row(given, sources) if staged and prepares else None
    if "train_dataset" in kwargs:
        kwargs["train_dataset"] = shown
        return args, given
    return (*args[:place], shown, *args[place + 1 :]), given


def _first_row(data: Any, sources: Mapping[str, Any]) -> Any:
    found = _first_dataset(data, sources)
    row = next(iter(found), None) if found is not None else None
    if not isinstance(row, Mapping):
        raise ValueError(
            f"train_dataset: expected data whose first row is a dict, got {row!r} in {type(data).__name__}"
        )
    return Dataset.from_list([dict(row)])


def _first_dataset(data: Any, sources: Mapping[str, Any]) -> Any:
    if isinstance(data, str):
        return _first_dataset(sources[data], sources) if data in sources else None
    if isinstance(data, Mapping) and not isinstance(data, Curriculum):
        return _first_dataset(next(iter(data.values()), None), sources)
    if not isinstance(data, Curriculum):
        return data
    held: list[Any] = []
    data.map_datasets(lambda dataset: held.append(dataset) or dataset)  # type: ignore[func-returns-value]
    held += [sources[name] for name in source_names_in(data) if name in sources]
    return _first_dataset(held[0], sources) if held else None
