"""Opens a teacher's cache on disk and reads its signals from memory-mapped files.

cache.json     what made it (teacher, data, tokenizer), and its arrays
keys.npy       (2, rows): the sorted keys of the rows; places.npy gives the shard and the position of each
00000/ ...     shards: one flat file per array, and a seal
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from hf_stages.core.sealed_folders import SEAL, checksum_file, find_damage
from hf_stages.teachers.row_keys import DECODER, ROWS, TOKENS

SCHEMA = 1
MANIFEST, KEYS, PLACES = "cache.json", "keys.npy", "places.npy"
SHARD, ROW = 0, 1
START = {TOKENS: 2, DECODER: 4, ROWS: 1}
"""Columns of places: the shard, the row in it, and the start and length of each frame of tokens."""
COLUMNS = 6
_AS_NUMPY = {"bfloat16": "uint16"}  # numpy has no bfloat16, so its bits are stored


def numpy_dtype(name: str) -> np.dtype:
    return np.dtype(_AS_NUMPY.get(name, name))


def content_settings(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide a cache's content. Sizes of batches and shards do not."""
    return {key: request[key] for key in ("teacher", "data", "collator", "tokenizer", "k", "hidden", "logits", "dtype")}


def content_address(request: Mapping[str, Any]) -> str:
    """Return a fingerprint of the content: equal where teacher, data, tokenizer and the stored signals are equal."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content_settings(request), sort_keys=True).encode())


class CacheFolder:
    """An open cache. It refuses a damaged one by its sizes; ``verify`` also reads all of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.arrays: dict[str, dict[str, Any]] = self.manifest["arrays"]
        self._check_sizes()
        self._maps: dict[tuple[int, str], np.ndarray] = {}

    @cached_property
    def keys(self) -> np.ndarray:
        return np.load(self.folder / KEYS, mmap_mode="r")

    @cached_property
    def places(self) -> np.ndarray:
        return np.load(self.folder / PLACES, mmap_mode="r")

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return each key's number in the index; -1 where it is missing."""
        first, second = self.keys
        if not len(first):
            return np.full(len(keys), -1)
        at = np.searchsorted(first, keys[:, 0])
        found = np.full(len(keys), -1)
        for row, (place, key) in enumerate(zip(at.tolist(), keys, strict=True)):
            while place < len(first) and first[place] == key[0]:
                if second[place] == key[1]:
                    found[row] = place
                    break
                place += 1
        return found

    def array(self, shard: int, name: str) -> np.ndarray:
        """Return one array of one shard. It is mapped at its first use."""
        if (shard, name) not in self._maps:
            about = self.arrays[name]
            path = self.folder / shard_name(shard) / f"{name}.bin"
            dtype, shape = numpy_dtype(about["dtype"]), tuple(about["shape"])
            count = path.stat().st_size // (dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
            empty = np.empty((0, *shape), dtype)
            self._maps[shard, name] = np.memmap(path, dtype, "r", shape=(count, *shape)) if count else empty
        return self._maps[shard, name]

    def gather(self, name: str, places: np.ndarray, spans: np.ndarray | None, size: int) -> torch.Tensor:
        """Return a signal of the rows, each between its padding; (rows, ...) for a signal with one value per row."""
        about = self.arrays[name]
        shape, frame = tuple(about["shape"]), about["frame"]
        whole = frame == ROWS
        out = np.zeros((len(places), *shape) if whole else (len(places), size, *shape), numpy_dtype(about["dtype"]))
        for row, place in enumerate(places.tolist()):
            source, start = self.array(place[SHARD], name), place[START[frame]]
            if whole:
                out[row] = source[start]
            else:
                assert spans is not None
                out[row, spans[row, 0] : spans[row, 1]] = source[start : start + place[START[frame] + 1]]
        return _as_torch(out, about["dtype"])

    def slots(self, frame: str, places: np.ndarray, spans: np.ndarray, size: int) -> torch.Tensor:
        """Return (rows, size, 2): the shard of each token and its number there; -1 at padding."""
        out = np.full((len(places), size, 2), -1, np.int64)
        for row, place in enumerate(places.tolist()):
            start, end = spans[row].tolist()
            out[row, start:end, 0] = place[SHARD]
            out[row, start:end, 1] = np.arange(end - start) + place[START[frame]]
        return torch.from_numpy(out)

    def read(self, name: str, slots: np.ndarray) -> torch.Tensor:
        """Read the values of tokens by their slots (n, 2); zeros at padding."""
        about = self.arrays[name]
        out = np.zeros((len(slots), *about["shape"]), numpy_dtype(about["dtype"]))
        for shard in np.unique(slots[:, 0]).tolist():
            if shard >= 0:
                mine = slots[:, 0] == shard
                out[mine] = self.array(shard, name)[slots[mine, 1]]
        return _as_torch(out, about["dtype"])

    def verify(self) -> None:
        """Read the whole cache and check every checksum."""
        for number, _ in self._shards():
            if (problem := find_damage(self.folder / shard_name(number))) is not None:
                raise _damaged_error(self.folder, f"{shard_name(number)}: {problem}")

    def _check_sizes(self) -> None:
        """Check the index's checksum, the shards' seals and the sizes of their files, without reading the large
        files."""
        for name, (size, digest) in self.manifest["index"].items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size or checksum_file(path) != digest:
                raise _damaged_error(self.folder, f"{name} is missing or was changed")
        for number, about in self._shards():
            folder = self.folder / shard_name(number)
            if not (folder / SEAL).is_file() or checksum_file(folder / SEAL) != about["seal"]:
                raise _damaged_error(self.folder, f"{folder.name} is missing or is of another cache")
            for name, (size, _) in json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"].items():
                if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                    raise _damaged_error(self.folder, f"{folder.name}/{name} is missing or has another size")

    def _shards(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return enumerate(self.manifest["shards"])


def shard_name(number: int) -> str:
    return f"{number:05d}"


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        partial = folder.with_name(f".{folder.name}.partial")
        why = (
            "its writing was cut; call Teacher.cache again to go on"
            if partial.is_dir()
            else "write one with Teacher.cache"
        )
        raise ValueError(f"{folder}: expected a teacher's cache, but there is no {MANIFEST}: {why}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        schema = manifest["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged_error(folder, f"{MANIFEST} cannot be read ({error})") from error
    if schema != SCHEMA:
        raise ValueError(
            f"{path}: written with schema {schema}, this version of hf_stages reads {SCHEMA}; write the cache anew"
        )
    if manifest.get("address") != content_address(manifest["request"]):
        raise _damaged_error(folder, f"{MANIFEST} was changed after it was written")
    return manifest


def _damaged_error(folder: Path, what: str) -> ValueError:
    return ValueError(
        f"{folder}: the teacher's cache is damaged: {what}; delete it and write it anew with Teacher.cache"
    )


def _as_torch(array: np.ndarray, dtype: str) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(getattr(torch, dtype)) if dtype in _AS_NUMPY else tensor
