"""The base class of collators, and what they share: a collator inside, curves over progress, examples without
padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch

from hf_stages.core.curves import Curve, as_curve
from hf_stages.core.placed_errors import place_errors

IGNORED = -100
LONGER = ("error", "split", "truncate")
Document = dict[str, torch.Tensor]
"""One example without padding: tensors with one entry per token, ``input_ids`` among them."""
_T = TypeVar("_T", bound="BaseCollator")


class BaseCollator:
    """Base class of collators: a frozen dataclass that turns rows into a batch.

    The trainer calls ``build`` when a stage begins, to give it a tokenizer and the model, and ``at`` for every batch,
    to turn its curves into numbers. A collator of your own defines ``__call__``.
    """

    in_pairs = False
    """Whether rows 2i and 2i + 1 of a batch are a pair."""

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(rows)")

    def build(self: _T, tokenizer: Any = None, model: Any = None) -> _T:
        """Return the collator ready for use; the trainer calls this when a stage begins."""
        own: dict[str, Any] = {}
        names = {field.name for field in fields(self)}  # type: ignore[arg-type]
        if "tokenizer" in names and getattr(self, "tokenizer", None) is None:
            own["tokenizer"] = tokenizer
        if "collator" in names:
            own["collator"] = build_collator(getattr(self, "collator", None), tokenizer, model)
        return replace(self, **own)  # type: ignore[type-var]

    def at(self: _T, t: float | None) -> _T:
        """Return the collator at progress ``t``.

        None is evaluation: curves at their end, and the same draws each time.
        """
        own: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Curve):
                own[field.name] = value_at(value, t, whole="int" in str(field.type))
            elif isinstance(value, BaseCollator):
                own[field.name] = value.at(t)
        return replace(self, **own) if own else self  # type: ignore[type-var]

    def for_source(self: _T, name: str) -> _T:
        """Return the collator for rows of this source that do not say so; see ``BySource``."""
        inner = getattr(self, "collator", None)
        return replace(self, collator=inner.for_source(name)) if isinstance(inner, BaseCollator) else self  # type: ignore[type-var]


def build_collator(collator: Any, tokenizer: Any, model: Any) -> Any:
    return collator.build(tokenizer, model) if hasattr(collator, "build") else collator


def nested_collators(collator: Any) -> Iterator[Any]:
    """Yield the collator and those inside it, from the outside in."""
    while collator is not None:
        yield collator
        collator = getattr(collator, "inner", getattr(collator, "collator", None))


def columns_read(collator: Any) -> frozenset[str]:
    """Return the columns that a collator, or one inside it, reads and the model does not."""
    return frozenset().union(*(getattr(one, "columns", ()) for one in nested_collators(collator)))


def value_at(value: float | Curve, t: float | None, *, whole: bool) -> Any:
    found = value(1.0 if t is None else t) if isinstance(value, Curve) else value
    return max(round(found), 1) if whole else found


def read_curve(collator: Any, key: str) -> None:
    """Turn text such as ``"Linear(256, 2048)"`` into a curve, as a recipe does."""
    if isinstance(value := getattr(collator, key), str):
        with place_errors(f"{type(collator).__name__}: {key}"):
            object.__setattr__(collator, key, as_curve(value))


def check_length(where: str, length: Any) -> None:
    if isinstance(length, Curve):
        low = min(length(i / 64) for i in range(65))
        if low < 1:
            raise ValueError(
                f"{where}: length: expected at least 1 token everywhere, the curve {length} falls to {low:.4g}"
            )
    elif isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(f"{where}: length: expected a whole number of tokens or a curve of them, got {length!r}")


def find_pair_collator(collator: Any) -> Any:
    """Return the collator, at any depth, that gives pairs of rows; None where there is none."""
    return next((one for one in nested_collators(collator) if getattr(one, "in_pairs", False)), None)


def refuse_pairs(where: str, collator: Any) -> None:
    """Refuse a collator of pairs inside one that changes the number of rows: it would split pairs, and no loss would
    notice."""
    if (found := find_pair_collator(collator)) is not None:
        raise ValueError(
            f"{where}: collator: {type(found).__name__} gives pairs of rows, which this would take apart or cut short; "
            "leave it out: Preferences(max_length=...) cuts pairs, and Lengths(longer='error') only pads"
        )


def check_choice(where: str, key: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{where}: {key}: expected one of {', '.join(known)}, got {value!r}")


# ---- examples without padding --------------------------------------------------------------------------------------


def read_documents(where: str, rows: Sequence[Any], collator: Any) -> tuple[list[Document], dict[str, torch.Tensor]]:
    """Return the examples without padding, as ``collator`` makes them (None: as they are), and the values that a row
    has one of."""
    if collator is None:
        return _read_plain_rows(where, rows)
    batch = dict(collator(rows))
    ids: Any = batch.get("input_ids")
    if not torch.is_tensor(ids) or ids.dim() != 2:
        raise ValueError(
            f"{where}: collator: expected input_ids of (rows, tokens) from {type(collator).__name__}, it gave "
            f"{sorted(batch)}"
        )
    mask: Any = batch.pop("attention_mask", None)
    if mask is not None and mask.dim() != 2:
        raise ValueError(
            f"{where}: collator: {type(collator).__name__} gives a mask of {mask.dim()} dimensions: it packs already; "
            "turn the two around, so that the one that packs is outside"
        )
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    tokens = {k: v for k, v in batch.items() if torch.is_tensor(v) and v.shape[:2] == ids.shape}
    apart = {k: v for k, v in batch.items() if k not in tokens}
    return [{key: value[i][real[i]] for key, value in tokens.items()} for i in range(len(ids))], apart


def _read_plain_rows(where: str, rows: Sequence[Any]) -> tuple[list[Document], dict[str, torch.Tensor]]:
    found: list[Document] = []
    apart: dict[str, list[torch.Tensor]] = {}
    for row in rows:
        if not isinstance(row, Mapping) or "input_ids" not in row:
            has = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
            raise ValueError(
                f"{where}: expected rows with input_ids, got {has}; tokenize the data, or give collator= one that does"
            )
        made = {key: torch.as_tensor(value) for key, value in row.items() if not isinstance(value, str | None)}
        count, mask = len(made["input_ids"]), made.pop("attention_mask", None)
        own = {key: value for key, value in made.items() if value.dim() and len(value) == count}
        for key in made.keys() - own.keys():
            apart.setdefault(key, []).append(made[key])
        if own["input_ids"].dim() != 1:
            raise ValueError(
                f"{where}: expected input_ids of one sequence, got {tuple(own['input_ids'].shape)} (several choices or "
                "texts for each example); give the stage a collator that pads these, such as "
                "DataCollatorForMultipleChoice"
            )
        own["input_ids"] = own["input_ids"].long()  # an empty list has no type of its own
        found.append(own if mask is None else {key: value[mask.bool()] for key, value in own.items()})
    return found, {key: torch.stack(values) for key, values in apart.items()}


def cut_to_length(where: str, document: Document, length: int, longer: str) -> list[Document]:
    """Return pieces of a document of at most ``length`` tokens; an empty document has none."""
    count = len(document["input_ids"])
    if count > length and longer == "error":
        raise ValueError(
            f"{where}: an example of {count} tokens is longer than length={length}; raise length, or say what becomes "
            "of such: longer='split' (pieces that do not see each other) or longer='truncate' (its end is lost)"
        )
    end = min(count, length) if longer == "truncate" else count
    return [{key: value[i : min(i + length, end)] for key, value in document.items()} for i in range(0, end, length)]


def padding_value(key: str, pad: int) -> int:
    return pad if key == "input_ids" else (IGNORED if key == "labels" else 0)


def pad_runs(runs: Sequence[torch.Tensor], width: int, value: int, *, left: bool = False) -> torch.Tensor:
    """Stack runs to a tensor of (runs, width), with ``value`` where a run has ended.

    >>> pad_runs([torch.tensor([1, 2]), torch.tensor([3])], 3, 0).tolist()
    [[1, 2, 0], [3, 0, 0]]
    """
    out = runs[0].new_full((len(runs), width, *runs[0].shape[1:]), value)
    for row, run in zip(out, runs, strict=True):
        start = width - len(run) if left else 0
        row[start : start + len(run)] = run
    return out


def pad_batch(runs: Sequence[Document], tokenizer: Any, width: int | None = None) -> dict[str, torch.Tensor]:
    """Make a batch with one row for each run, padded on the tokenizer's side, and its attention_mask."""
    left = getattr(tokenizer, "padding_side", "right") == "left"
    runs = [{**run, "attention_mask": torch.ones_like(run["input_ids"])} for run in runs]
    width = max(len(run["input_ids"]) for run in runs) if width is None else width
    fills = {key: padding_value(key, pad_id(tokenizer)) for key in runs[0]}
    return {key: pad_runs([run[key] for run in runs], width, fill, left=left) for key, fill in fills.items()}


def pad_id(tokenizer: Any) -> int:
    """Return the token that pads. Without a padding token it is 0: no model sees it, and no label asks for it."""
    found = getattr(tokenizer, "pad_token_id", None)
    return 0 if found is None else found
