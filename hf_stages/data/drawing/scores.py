"""Measures or scores all rows of a source, and sorts them by it. Computed once and stored as integers of 32 bits."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from hf_stages.core.fingerprint import fingerprint

_BATCH = 256
_TOKENS = "input_ids"
_lengths: weakref.WeakKeyDictionary[Any, np.ndarray] = weakref.WeakKeyDictionary()


def row_lengths(dataset: Any, where: str) -> np.ndarray:
    """Return the tokens of every row: from Arrow's offsets where possible, else row by row.

    Remembered with the dataset.
    """
    try:
        known = _lengths.get(dataset)
    except TypeError:  # a list, which nothing can hold weakly
        return _read_lengths(dataset, where)
    if known is None:
        known = _lengths[dataset] = _read_lengths(dataset, where)
    return known


def columns_of(dataset: Any) -> list[str]:
    names = getattr(dataset, "column_names", None)
    if isinstance(names, list):
        return names
    first = dataset[0]
    return list(first) if isinstance(first, Mapping) else []


def count_tokens(row: Any) -> int:
    """Count the tokens of one row, or of rows that a batch takes as one."""
    if isinstance(row, list):
        return sum(count_tokens(one) for one in row)
    return _count_ids(row[_TOKENS]) if isinstance(row, Mapping) and _TOKENS in row else 0


def _count_ids(ids: Any) -> int:
    """Count token ids; a multiple-choice example has the tokens of all its choices."""
    return sum(map(_count_ids, ids)) if len(ids) and hasattr(ids[0], "__len__") and np.ndim(ids[0]) else len(ids)


def _read_lengths(dataset: Any, where: str) -> np.ndarray:
    own = getattr(dataset, "tokens", None)
    if isinstance(own, np.ndarray):  # groups of rows
        return own
    if _TOKENS not in columns_of(dataset):
        raise ValueError(f"{where}: the rows have no {_TOKENS} to count; tokenize them first, or go by examples")
    table = getattr(getattr(dataset, "data", None), "table", None)
    if table is not None and getattr(dataset, "format", {}).get("type") != "custom":
        import pyarrow.compute as compute

        try:
            column = table.column(_TOKENS)
            nested = hasattr(column.type.value_type, "value_type")  # choices
            found = None if nested else compute.list_value_length(column).to_numpy().astype(np.uint32)
        except (KeyError, NotImplementedError, TypeError, ValueError):
            found = None
        if found is not None:
            chosen = getattr(dataset, "_indices", None)
            return found if chosen is None else found[chosen.column(0).to_numpy()]
    return np.fromiter(
        (_count_ids(dataset[i][_TOKENS]) for i in range(len(dataset))), dtype=np.uint32, count=len(dataset)
    )


def score_rows(dataset: Any, by: str | Callable[[list[Any]], Any], where: str) -> np.ndarray:
    """Return a number for every row: from a column, from ``"length"``, or from a function of a list of rows."""
    if by == "length":
        return row_lengths(dataset, where)
    n = len(dataset)
    if isinstance(by, str):
        if hasattr(dataset, "with_format"):
            values = dataset.with_format("numpy", columns=[by])[:][by]
        else:
            values = [dataset[i][by] for i in range(n)]
    else:
        values = []
        for start in range(0, n, _BATCH):
            rows = [dataset[i] for i in range(start, min(start + _BATCH, n))]
            given = [float(value) for value in by(rows)]
            if len(given) != len(rows):
                raise ValueError(f"{where}: by: expected a number for each of {len(rows)} rows, got {len(given)}")
            values += given
    found = np.asarray(values)
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.number):
        raise ValueError(f"{where}: by: expected one number per row, got {found.dtype} of shape {found.shape}")
    if not np.isfinite(found.astype(np.float64)).all():
        row = int(np.flatnonzero(~np.isfinite(found.astype(np.float64)))[0])
        raise ValueError(f"{where}: by: row {row} scores {found[row]}; expected finite numbers")
    return found


def sort_rows(values: np.ndarray, *, descending: bool) -> np.ndarray:
    """Return the row numbers from the lowest value to the highest; equal rows stay in their order."""
    if not descending:
        return np.argsort(values, kind="stable").astype(np.uint32)
    # Reversed twice: as floats, large whole numbers would be equal, and unsigned ones have no negatives.
    return (len(values) - 1 - np.argsort(values[::-1], kind="stable")[::-1]).astype(np.uint32)


def cached_order(folder: Path | None, about: tuple[Any, ...], make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array stored in ``folder`` as a memory map.

    If it is missing, one process makes it while others wait.
    """
    if folder is None:
        return make()
    from filelock import FileLock

    path = folder / f"order-{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, make())
            os.replace(temporary, path)
    return np.load(path, mmap_mode="r")


def score_identity(by: str | Callable[..., Any], *, shared: bool) -> str:
    """Return a text that identifies a score; for a function its code is part of it.

    In a folder that runs share, what the function holds (a model) is part of it, too. In a run's own folder it is not:
    it may have changed since, and a resumed run must find the order that it began with.
    """
    if isinstance(by, FunctionType):
        held = [fingerprint(cell.cell_contents) for cell in by.__closure__ or ()] if shared else ()
        code = by.__code__
        return f"{fingerprint(by)} {hashlib.sha256(code.co_code).hexdigest()[:16]} {code.co_names} {held}"
    return by if isinstance(by, str) else fingerprint(by)
