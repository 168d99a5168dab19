"""Write tensors to a GGUF file: choose the type of each, and note which ones do not fit a low-bit type."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_stages.core.placed_errors import place_errors
from hf_stages.packing.formats.gguf_blocks import BLOCK, block_type, to_blocks, to_float16
from hf_stages.packing.formats.model_weights import Array, Levels, Weight, WeightReader

RESTS = {"float16": "F16", "float32": "F32"}
_FILE_TYPES = {"TQ2_0": "MOSTLY_TQ2_0", "Q1_0": "MOSTLY_Q1_0", "F16": "MOSTLY_F16", "F32": "ALL_F32"}


class TensorWriter:
    """Writes tensors with a ``gguf.GGUFWriter``.

    Args:
        writer: The writer of the file.
        rest: The type of matrices that are not quantized, ``F16`` or ``F32``.
        strict: Whether a quantized weight that fits no low-bit type is an error.
    """

    def __init__(self, writer: Any, rest: str, strict: bool) -> None:
        self.writer, self.rest, self.strict = writer, rest, strict
        self.counts: dict[str, int] = {}
        self.notes: list[str] = []
        self._weights: dict[str, int] = {}
        self._misfits: dict[str, list[str]] = {}

    def linear(self, reader: WeightReader, path: str, name: str, order: Array | None = None) -> None:
        """Write a linear layer with its bias, its rows in ``order``."""
        weight, bias = reader.weight(path), reader.bias(path)
        if order is not None:
            weight = weight.reordered(order) if isinstance(weight, Levels) else weight[order]
            bias = None if bias is None else bias[order]
        self.matrix(f"{name}.weight", weight)
        if bias is not None:
            self.vector(f"{name}.bias", bias)

    def norm(self, reader: WeightReader, path: str, name: str, bias: bool = True) -> None:
        """Write a norm's vectors."""
        for end in ("weight", "bias") if bias else ("weight",):
            self.vector(f"{name}.{end}", reader.vector(f"{path}.{end}"))

    def matrix(self, name: str, weight: Weight) -> None:
        """Write a matrix: in blocks where it is quantized and fits them, else as ``rest``."""
        import gguf

        if not isinstance(weight, Levels):
            self._plain(name, weight)
            return
        try:
            kind = block_type(weight)
        except ValueError as error:
            if self.strict:
                raise ValueError(f"Gguf: {name}: {error}; strict=False writes it in {self.rest}") from None
            self._misfits.setdefault(str(error), []).append(name)
            self._plain(name, weight.dense())
            return
        with place_errors(f"Gguf: {name}"):
            packed = to_blocks(weight, kind)
        self.writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType[kind])
        self._count(kind, packed.nbytes)

    def vector(self, name: str, values: Array) -> None:
        """Write a vector in float32, which llama.cpp expects of everything but matrices."""
        self.writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
        self._count("F32", 0)

    def _plain(self, name: str, values: Array) -> None:
        try:
            stored = to_float16(values) if self.rest == "F16" else values
        except ValueError as error:
            raise ValueError(f"Gguf: {name}: {error}; choose rest='float32'") from None
        self.writer.add_tensor(name, np.ascontiguousarray(stored))
        self._count(self.rest, stored.nbytes)

    def _count(self, kind: str, size: int) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self._weights[kind] = self._weights.get(kind, 0) + size

    def finish(self) -> None:
        """Note what is not in low bits, and write the file."""
        import gguf

        for why, names in self._misfits.items():
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            self.notes.append(f"{shown} in {self.rest}, not in low bits: {why}")
        low = [kind for kind in BLOCK if kind in self.counts] or [self.rest]
        most = max(low, key=lambda kind: self._weights.get(kind, 0))
        self.writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[most]])
        self.writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
