"""Reads a cached teacher, and checks it before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_stages.models.capture import parse
from hf_stages.models.checksums import checksum_of, vocabulary_of
from hf_stages.models.signals import Head, Signals
from hf_stages.teachers.cache_folder import CacheFolder
from hf_stages.teachers.declared import CachedTeacher, Teacher
from hf_stages.teachers.row_keys import DECODER, ROWS, TOKENS, BatchRows, rows_of_batch
from hf_stages.teachers.top_k_logits import UnpackLogits, pack_logits


class CacheReader:
    """Gives the signals of a batch from the cache. It has no state: the signals depend on the batch alone.

    Logits of tokens are given as a ``Head``. Where all logits are stored, a loss reads them from the disk, a chunk at a
    time. Where the largest k are stored, they come packed, and are unpacked a chunk at a time.
    """

    def __init__(self, cached: CachedTeacher, needs: frozenset[str]) -> None:
        self.cached, self.store, self.model = cached, cached.store, cached.model
        self.hidden = sorted(needs & set(self.store.arrays))
        self.final, self.logits = "final" in needs, bool(needs & {"logits", "outputs"})

    def __call__(self, batch: Mapping[str, Any]) -> Signals:
        with torch.no_grad():
            rows = rows_of_batch(self.model, batch)
            places = find_rows(self.store, rows, batch)
            captured: dict[str, Any] = {key: self._gather(key, places, rows) for key in self.hidden if key != "logits"}
            logits = self._logits(places, rows) if self.final or self.logits else None
            if isinstance(logits, Head):
                if self.final:
                    captured["head"] = logits
                logits = logits.module(logits.hidden) if self.logits else None
        return Signals(_Outputs(logits=logits), captured=captured)

    def _gather(self, name: str, places: Any, rows: BatchRows) -> torch.Tensor:
        frame = self.store.arrays[name]["frame"]
        found = self.store.gather(name, places, rows.spans.get(frame), rows.sizes.get(frame, 0))
        return found.to(rows.device, non_blocking=True)

    def _logits(self, places: Any, rows: BatchRows) -> torch.Tensor | Head:
        classes = self.store.manifest["classes"]
        if "logits" not in self.store.arrays:
            parts = [self._gather(f"logits.{name}", places, rows) for name in ("value", "index", "rest")]
            return Head(pack_logits(*parts), UnpackLogits(classes))
        frame = self.store.arrays["logits"]["frame"]
        if frame == ROWS:
            return self._gather("logits", places, rows)
        slots = self.store.slots(frame, places, rows.spans[frame], rows.sizes[frame])
        return Head(slots.to(rows.device), _StoredLogits(self.store, classes))


class _Outputs(dict):
    """The outputs of a model that a cache has, for losses that do not say what they read."""

    def __missing__(self, key: str) -> Any:
        raise ValueError(
            f"the teacher's {key} is not in its cache, which has logits and hidden states; use a live teacher"
        )

    def __getattr__(self, key: str) -> Any:
        return self[key]


class _StoredLogits(nn.Module):
    """An output head whose input is the place of its logits in the cache."""

    def __init__(self, store: CacheFolder, classes: int) -> None:
        super().__init__()
        self.store, self.out_features = store, classes

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        found = self.store.read("logits", slots.reshape(-1, 2).cpu().numpy())
        return found.reshape(*slots.shape[:-1], self.out_features).to(slots.device)


def find_rows(store: CacheFolder, rows: BatchRows, batch: Mapping[str, Any]) -> Any:
    """Find the rows of a batch in the cache. A row that is missing is an error: the cache is stale or of other data."""
    numbers = store.find(rows.keys)
    if (numbers >= 0).all():
        return store.places[numbers]
    row = int((numbers < 0).argmax())
    raise ValueError(
        f"{store.folder}: the teacher's cache is stale: {_describe_row(row, rows, batch)}. {_how_to_mend(store, rows)}"
    )


def _describe_row(row: int, rows: BatchRows, batch: Mapping[str, Any]) -> str:
    for frame, key in ((TOKENS, "input_ids"), (DECODER, "decoder_input_ids")):
        ids: Any = batch.get(key)
        if torch.is_tensor(ids) and frame in rows.spans:
            start, end = rows.spans[frame][row].tolist()
            shown = ids[row, start : min(end, start + 8)].tolist()
            return f"it does not hold the row of {end - start} tokens that begins with {key} {shown}"
    return f"it does not hold row {row} of this batch ({', '.join(rows.names)})"


def _how_to_mend(store: CacheFolder, rows: BatchRows) -> str:
    known = tuple(store.manifest["inputs"])
    if known != rows.names:
        return (
            f"The cache was written from {', '.join(known)}, the batch has {', '.join(rows.names)}: give Teacher.cache "
            "the collator and the columns of the training"
        )
    return (
        "Write it anew with Teacher.cache over this dataset, with this tokenizer and collator. Inputs that are drawn "
        "at random (masking, augmentation, packing) are never the same twice and need a live teacher"
    )


# ---- before the first step -----------------------------------------------------------------------------------------


def check_needs(cached: CachedTeacher, needs: frozenset[str]) -> None:
    """Refuse a cache that does not hold everything that losses need."""
    request, arrays = cached.store.manifest["request"], cached.store.arrays
    for key in sorted(needs):
        if key == "loss":
            raise ValueError(
                "needs the teacher's own loss, which a cache does not have; use a live teacher for this stage"
            )
        if key in ("final", "logits", "outputs"):
            if not request["logits"]:
                raise ValueError(
                    f"needs the teacher's logits, but {cached.folder} was written with logits=False; write it anew, or "
                    "use a live teacher"
                )
            continue
        if parse(key)[1] == "attention":
            raise ValueError(
                f"needs the teacher's {key}: attention is not cached (it grows with the square of the length); use a "
                "live teacher for this stage"
            )
        if key not in arrays:
            held = ", ".join(request["hidden"]) or "no hidden states"
            raise ValueError(
                f"needs the teacher's {key}, but {cached.folder} holds {held}; write it anew with "
                f"hidden={_layers_needed(needs)}"
            )


def check_same_teacher(cached: CachedTeacher) -> None:
    """Refuse a teacher given as ``of`` that is not the one that was cached."""
    model = cached.of
    if model is None:
        return
    if isinstance(model, str):
        model = Teacher(model)
    if isinstance(model, Teacher):
        model = model.load(cached.model)
    if checksum_of(model) != cached.store.manifest["request"]["teacher"]["fingerprint"]:
        raise ValueError(
            f"{cached.folder}: the teacher's cache is stale: it was written with other weights or another config than "
            "the model given as `of`; write it anew with Teacher.cache"
        )


def check_vocabulary(cached: CachedTeacher, tokenizer: Any) -> None:
    """Refuse a cache whose tokenizer differs from the student's. The cache stores a checksum of its tokenizer."""
    theirs, mine = cached.store.manifest["request"]["tokenizer"], vocabulary_of(tokenizer)
    if None not in (theirs, mine) and theirs != mine:
        raise ValueError(
            f"{cached.folder} was written with another tokenizer than processing_class: the same number would mean "
            "another token; use one tokenizer for both"
        )


def _layers_needed(needs: frozenset[str]) -> list[int | str]:
    keys = [key for key in sorted(needs) if key not in ("final", "logits", "outputs") and parse(key)[1] == "hidden"]
    return [parse(key)[2] if parse(key)[0] is None else key for key in keys]
