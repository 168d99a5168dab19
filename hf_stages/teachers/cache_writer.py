"""Writes a teacher's cache: the teacher runs once over the data, and what losses will need of it is stored on disk.

Rows are written in shards. A shard is either complete or missing, so a run that was killed goes on after the last one.
The folder gets its name when all shards are there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock
from torch.utils.data import DataLoader, Subset
from transformers import DataCollatorWithPadding, default_data_collator
from transformers.utils import logging

from hf_stages.core.differences import diff
from hf_stages.core.fingerprint import fingerprint
from hf_stages.core.randomness import preserve_random_state
from hf_stages.core.sealed_folders import SEAL, checksum_file, find_damage, read_json, write_json, write_sealed_folder
from hf_stages.layers.blocks import blocks_of
from hf_stages.models.capture import parse
from hf_stages.models.checksums import checksum_of, class_and_config, vocabulary_of
from hf_stages.models.model_inputs import columns_of
from hf_stages.models.signals import key_of
from hf_stages.teachers.cache_folder import (
    COLUMNS,
    KEYS,
    MANIFEST,
    PLACES,
    SCHEMA,
    content_address,
    content_settings,
    read_manifest,
    shard_name,
)
from hf_stages.teachers.live import LiveTeacher
from hf_stages.teachers.row_keys import DECODER, ROWS, TOKENS, BatchRows, rows_of_batch
from hf_stages.teachers.top_k_logits import encode_top_k

logger = logging.get_logger(__name__)
DTYPES = ("float32", "float16", "bfloat16")
_ABOUT = "shard.json"


@dataclass(frozen=True)
class CacheJob:
    """One cache to write."""

    model: Any
    dataset: Any
    folder: Path
    collator: Any = None
    k: int | None = None
    hidden: Sequence[int | str] = ()
    logits: bool = True
    dtype: str = "float32"
    batch_size: int = 32
    tokenizer: Any = None
    shard_rows: int | None = None
    remove_unused_columns: bool = True
    device: torch.device | None = None

    def write(self) -> None:
        """Write the cache, unless it is there already. Refuse a folder that holds another cache."""
        self._check()
        keys = hidden_keys(self.model, self.hidden)
        request = self._request(keys)
        work = self.folder.with_name(f".{self.folder.name}.partial")
        with only_writer(work):
            if self.folder.exists():
                _refuse_other_cache(self.folder, request)
                shutil.rmtree(work, ignore_errors=True)
                return
            self._resume_or_restart(work, request)
            self._write_shards(work, keys)
            write_index(work, request)
            os.replace(work, self.folder)
        (self.folder / "lock").unlink(missing_ok=True)

    def _check(self) -> None:
        if not isinstance(self.dataset, Sized) or not hasattr(self.dataset, "__getitem__") or not len(self.dataset):
            raise ValueError(
                "Teacher.cache: dataset: expected one with a length and rows by number, got "
                f"{type(self.dataset).__name__}; a stream is never the same twice"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"Teacher.cache: dtype: expected {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.k is not None and (isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1):
            raise ValueError(f"Teacher.cache: k: expected how many logits to keep, or None for all, got {self.k!r}")
        if self.k is not None and not self.logits:
            raise ValueError("Teacher.cache: k says how many logits to keep, but logits=False; leave one of them out")
        if not self.logits and not self.hidden:
            raise ValueError("Teacher.cache: nothing to keep: logits=False, and hidden is empty")

    def _request(self, keys: Sequence[str]) -> dict[str, Any]:
        rows, batch = len(self.dataset), self.batch_size
        shard = self.shard_rows if self.shard_rows is not None else max(1024, rows // 500)
        with preserve_random_state():
            data = {"fingerprint": fingerprint(self.dataset), "rows": rows}
        kind, config = class_and_config(self.model)
        return {
            "teacher": {"class": kind, "config": config, "fingerprint": checksum_of(self.model)},
            "data": data,
            "collator": fingerprint(self.collator) if self.collator is not None else None,
            "tokenizer": vocabulary_of(self.tokenizer),
            "k": self.k,
            "hidden": list(keys),
            "logits": self.logits,
            "dtype": self.dtype,
            "batch_size": batch,
            "shard_rows": -(-shard // batch) * batch,  # whole batches, so that a resumed run cuts the same ones
        }

    def _resume_or_restart(self, work: Path, request: dict[str, Any]) -> None:
        """Keep the shards of an earlier run of the same job; delete those of another job."""
        plan = work / "plan.json"
        if plan.is_file():
            before = read_json(plan, "the plan of a cache")["request"]
            if before == request:
                return
            changed = "; ".join(diff(before, request)[:3])
            logger.warning(f"{work}: begun for another cache ({changed}); it is written anew")
            for path in work.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
        write_json(plan, {"schema": SCHEMA, "request": request})

    def _write_shards(self, work: Path, keys: Sequence[str]) -> None:
        request = read_json(work / "plan.json", "the plan of a cache")["request"]
        size, total = request["shard_rows"], len(self.dataset)
        missing = [i for i in range(-(-total // size)) if find_damage(work / shard_name(i)) is not None]
        todo = sum(min(size, total - i * size) for i in missing)
        if todo < total:
            logger.warning(f"{self.folder}: {total - todo} of {total} rows are there already; going on behind them")
        device = self.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        needs = frozenset(keys) | ({"logits"} if self.logits else frozenset())
        teacher = LiveTeacher(self.model, needs, device)
        progress = logging.tqdm(total=todo, desc="teacher", unit=" rows")
        try:
            for shard in missing:
                part = range(shard * size, min((shard + 1) * size, total))
                with (
                    write_sealed_folder(work / shard_name(shard)) as new,
                    preserve_random_state(),
                    _Shard(new, shard, keys, self) as writer,
                ):
                    for batch in self._batches(part, device):
                        rows = rows_of_batch(self.model, batch)
                        writer.add(rows, teacher(batch))
                        progress.update(len(rows))
        finally:
            teacher.remove()
            progress.close()

    def _batches(self, part: range, device: torch.device) -> Iterator[dict[str, Any]]:
        collator = self.collator
        if collator is None:
            collator = default_data_collator if self.tokenizer is None else DataCollatorWithPadding(self.tokenizer)
        known = columns_of(self.model) if self.remove_unused_columns else None

        def collate(rows: list[Any]) -> Any:
            if known is not None and isinstance(rows[0], Mapping):
                rows = [{key: value for key, value in row.items() if key in known} for row in rows]
            return collator(rows)

        for batch in DataLoader(Subset(self.dataset, part), self.batch_size, collate_fn=collate):
            yield {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}


class _Shard:
    """Writes one shard. Arrays grow at their ends, so no more than a batch is in memory."""

    def __init__(self, folder: Path, number: int, hidden: Sequence[str], job: CacheJob) -> None:
        self.folder, self.number, self.hidden, self.job = folder, number, hidden, job
        self.dtype: torch.dtype = getattr(torch, job.dtype)
        self.files: dict[str, BinaryIO] = {}
        self.arrays: dict[str, dict[str, Any]] = {}
        self.keys: list[np.ndarray] = []
        self.places: list[list[int]] = []
        self.ends = {TOKENS: 0, DECODER: 0}
        self.about: dict[str, Any] = {"kept": 0.0, "least": 1.0, "positions": 0, "classes": None, "inputs": []}

    def __enter__(self) -> _Shard:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        for file in self.files.values():
            file.close()
        if kind is None:
            np.save(self.folder / KEYS, np.concatenate(self.keys))
            np.save(self.folder / PLACES, np.array(self.places, np.int64))
            write_json(self.folder / _ABOUT, {"schema": SCHEMA, "arrays": self.arrays, "ends": self.ends, **self.about})

    def add(self, rows: BatchRows, signals: Any) -> None:
        for key in self.hidden:
            self._signal(key, signals[key], rows)
        if self.job.logits:
            self._logits(signals.logits, rows)
        self.keys.append(rows.keys)
        self.about["inputs"] = list(rows.names)
        for row in range(len(rows)):
            place = [self.number, len(self.places)]
            for frame in (TOKENS, DECODER):
                start, end = rows.spans[frame][row].tolist() if frame in rows.spans else (0, 0)
                place += [self.ends[frame], end - start]
                self.ends[frame] += end - start
            self.places.append(place)

    def _signal(self, key: str, states: torch.Tensor, rows: BatchRows) -> None:
        frame = _frame_of_signal(key, states, rows)
        self._append(key, frame, self._cast(key, _without_padding(states, frame, rows)))

    def _logits(self, logits: torch.Tensor, rows: BatchRows) -> None:
        k, classes = self.job.k, logits.shape[-1]
        frame = _frame_of_signal("logits", logits, rows)
        self.about["classes"] = classes
        if k is None:
            self._append("logits", frame, self._cast("logits", _without_padding(logits, frame, rows)))
            return
        if frame == ROWS:
            raise ValueError(
                "Teacher.cache: k: this teacher gives one row of logits per example; leave k out, all are few"
            )
        if k >= classes:
            raise ValueError(
                f"Teacher.cache: k: expected fewer than the teacher's {classes} logits, got {k}; leave k out for all"
            )
        parts = encode_top_k(_without_padding(logits, frame, rows), k, self.dtype)
        kept = parts.pop("kept").double()
        self.about["kept"] += float(kept.sum())
        self.about["least"] = min(self.about["least"], float(kept.min())) if len(kept) else self.about["least"]
        self.about["positions"] += len(kept)
        for name, part in parts.items():
            self._append(f"logits.{name}", frame, part)

    def _cast(self, key: str, values: torch.Tensor) -> torch.Tensor:
        cast = values.to(self.dtype)
        if self.dtype == torch.float16 and int(values.isinf().sum()) != int(cast.isinf().sum()):
            raise ValueError(f"Teacher.cache: dtype: {key} has values beyond float16's 65504; use bfloat16 or float32")
        return cast

    def _append(self, name: str, frame: str, values: torch.Tensor) -> None:
        about = {"frame": frame, "dtype": str(values.dtype).removeprefix("torch."), "shape": list(values.shape[1:])}
        if self.arrays.setdefault(name, about) != about:
            raise ValueError(
                f"Teacher.cache: {name} is {about} here and {self.arrays[name]} before: its size depends on the batch, "
                "and no attention_mask says what is padding; pad all rows alike, or use a live teacher"
            )
        if name not in self.files:
            self.files[name] = open(self.folder / f"{name}.bin", "wb")  # noqa: SIM115
        self.files[name].write(values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def hidden_keys(model: Any, hidden: Sequence[int | str]) -> list[str]:
    """Turn ``[2, -1]`` or ``["encoder.hidden.2"]`` into keys of signals."""
    keys = []
    for layer in [hidden] if isinstance(hidden, int | str) else hidden:
        try:
            stack, kind, number = (None, "hidden", layer) if isinstance(layer, int) else parse(layer)
            depth = len(blocks_of(model, stack))
        except ValueError as error:
            raise ValueError(
                f"Teacher.cache: hidden: {layer!r}: {error}; write 'decoder.hidden.3' for a stack's"
            ) from error
        number = depth + 1 + number if number < 0 else number
        if kind != "hidden" or not 0 <= number <= depth:
            raise ValueError(f"Teacher.cache: hidden: expected layers 0 (embeddings) to {depth}, got {layer!r}")
        keys.append(key_of("hidden", number, stack))
    return sorted(set(keys))


def write_index(work: Path, request: Mapping[str, Any]) -> None:
    """Write the index over all shards, and the manifest."""
    folders = sorted(path for path in work.iterdir() if path.is_dir())
    abouts = [read_json(folder / _ABOUT, "a shard") for folder in folders]
    for folder, about in zip(folders, abouts, strict=True):
        if about["arrays"] != abouts[0]["arrays"]:
            raise ValueError(f"{folder}: its arrays are {about['arrays']}, the first shard's {abouts[0]['arrays']}")
    keys = np.concatenate([np.load(folder / KEYS) for folder in folders])
    places = np.concatenate([np.load(folder / PLACES) for folder in folders])
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: the first of equal rows counts
    first = np.ones(len(order), bool)
    first[1:] = (keys[order][1:] != keys[order][:-1]).any(1)
    order = order[first]
    np.save(work / KEYS, np.ascontiguousarray(keys[order].T))
    np.save(work / PLACES, places[order].reshape(-1, COLUMNS))
    positions = sum(about["positions"] for about in abouts)
    size = sum(path.stat().st_size for folder in folders for path in folder.glob("*.bin"))
    manifest = {
        "schema": SCHEMA,
        "address": content_address(request),
        "request": request,
        "arrays": abouts[0]["arrays"],
        "classes": abouts[0]["classes"],
        "inputs": abouts[0]["inputs"],
        "rows": len(order),
        "tokens": sum(sum(about["ends"].values()) for about in abouts),
        "bytes": size,
        "kept": sum(about["kept"] for about in abouts) / positions if positions else None,
        "least": min(about["least"] for about in abouts) if positions else None,
        "shards": [{"seal": checksum_file(folder / SEAL)} for folder in folders],
        "index": {name: [(work / name).stat().st_size, checksum_file(work / name)] for name in (KEYS, PLACES)},
    }
    write_json(work / MANIFEST, manifest)
    (work / "plan.json").unlink()


def _frame_of_signal(key: str, values: torch.Tensor, rows: BatchRows) -> str:
    if len(values) != len(rows):
        raise ValueError(
            f"Teacher.cache: {key} has {len(values)} rows for {len(rows)} examples (choices or images that the model "
            "runs as rows of their own), so none is one example's; use a live teacher"
        )
    stack, *_ = parse(key) if key != "logits" else (DECODER if DECODER in rows.sizes else None,)
    frame = DECODER if stack == "decoder" else TOKENS
    return frame if values.dim() >= 3 and rows.sizes.get(frame) == values.shape[1] else ROWS


def _without_padding(values: torch.Tensor, frame: str, rows: BatchRows) -> torch.Tensor:
    """Return the values of all rows' tokens, without padding."""
    if frame == ROWS:
        return values
    size = rows.sizes[frame]
    index = np.concatenate([np.arange(s, e) + row * size for row, (s, e) in enumerate(rows.spans[frame].tolist())])
    return values.reshape(-1, *values.shape[2:])[torch.from_numpy(index).to(values.device)]


def _refuse_other_cache(folder: Path, request: Mapping[str, Any]) -> None:
    found = read_manifest(folder)
    if found["address"] != content_address(request):
        changed = "; ".join(diff(content_settings(found["request"]), content_settings(request))[:3])
        raise ValueError(
            f"{folder} holds another cache ({changed}); choose another folder, or delete it to write it anew"
        )


@contextmanager
def only_writer(work: Path) -> Iterator[None]:
    """Let one process write. Others that ask for the same cache, such as ranks, wait and find it."""
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work / "lock"):
        yield
