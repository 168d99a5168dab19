"""Read and check the header of a safetensors file, so that damage is named before anything is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

_BYTES = {"BOOL": 1, "I8": 1, "U8": 1, "I16": 2, "F16": 2, "BF16": 2, "I32": 4, "F32": 4, "I64": 8, "F64": 8}


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file."""

    file: Path
    entries: Mapping[str, Any]
    """Dtype, shape and offsets of each tensor, by its name."""
    metadata: Mapping[str, str]
    start: int
    """The offset in the file at which the tensors begin."""

    def data(self) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the bytes of each tensor."""
        with self.file.open("rb") as stream:
            for name, entry in self.entries.items():
                begin, end = entry["data_offsets"]
                stream.seek(self.start + begin)
                yield name, stream.read(end - begin)


def header_of(file: Path) -> Header:
    """Read a file's header; ValueError where the file is damaged or missing."""
    if not file.is_file():
        raise ValueError(f"{file} is missing; download it anew")
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, 100_000_000):
            raise ValueError(f"{file}: expected a safetensors file, got a header of {length} bytes in a file of {size}")
        try:
            entries = json.loads(stream.read(length))
            if not isinstance(entries, dict):
                raise ValueError(f"expected tensors by name, got a {type(entries).__name__}")
            metadata = entries.pop("__metadata__", {})
            if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
                raise ValueError("__metadata__: expected words by name")
            ends = [_end_of_tensor(name, entry) for name, entry in entries.items()]
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{file}: the header of a safetensors file cannot be read ({error}); download it anew"
            ) from error
    if max(ends, default=0) != size - 8 - length:
        raise ValueError(
            f"{file}: expected {max(ends, default=0)} bytes of tensors, got {size - 8 - length}; download it anew"
        )
    try:
        with safe_open(file, "pt"):  # its reader refuses more, such as a gap between two tensors
            return Header(file, entries, metadata, 8 + length)
    except SafetensorError as error:
        raise ValueError(
            f"{file}: the header of a safetensors file cannot be read ({error}); download it anew"
        ) from error


def _end_of_tensor(name: str, entry: Any) -> int:
    """Return the offset at which a tensor ends; ValueError where its entry is not valid."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if (
        not isinstance(dtype, str)
        or not _is_counts(shape)
        or not _is_counts(offsets)
        or len(offsets) != 2
        or (dtype in _BYTES and math.prod(shape) * _BYTES[dtype] != offsets[1] - offsets[0])
    ):
        raise ValueError(f"{name}: expected a dtype, a shape and offsets that fit, got {str(entry)[:200]}")
    return offsets[1]


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
