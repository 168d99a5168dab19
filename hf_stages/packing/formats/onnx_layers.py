"""Quantized layers as nodes of an ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hf_stages.core.placed_errors import place_errors
from hf_stages.layers.activations import Activations
from hf_stages.layers.packed_levels import pack_levels
from hf_stages.packing.formats.model_weights import Array, Half, Levels, WeightReader
from hf_stages.packing.formats.onnx_graph import MICROSOFT, Graph

_BLOCKS = (128, 64, 32, 16)
"""The block sizes of MatMulNBits, the fastest first."""
_ZEROS = 0b10101010
"""A byte of four weights with level 0."""


class Layers:
    """Linear layers, embeddings and norms of a model as nodes of a graph.

    Args:
        graph: The graph to add nodes to.
        reader: The model's weights.
        activations: How inputs are rounded, as in ``Onnx``.
    """

    def __init__(self, graph: Graph, reader: WeightReader, activations: str = "trained") -> None:
        self.graph, self.reader, self.activations = graph, reader, activations
        self._rounded: dict[tuple[Any, ...], str] = {}

    def linear(self, path: str, x: str) -> str:
        """Add a linear layer."""
        weight, bias, graph = self.reader.weight(path), self.reader.bias(path), self.graph
        if isinstance(weight, Levels):
            found = self._quantized(path, weight, x)
        else:
            name, narrow = graph.matrix(f"{path}.weight", weight.T)
            found = graph.op("MatMul", x, graph.cast(name) if narrow else name)
        return found if bias is None else graph.op("Add", found, graph.weight(f"{path}.bias", bias))

    def head(self, table: str, x: str) -> str:
        """Add an output layer that shares the weight of the word embeddings."""
        weight = self.reader.weight(table)
        assert not isinstance(weight, Levels)
        name = self.graph.op("Transpose", f"{table}.weight", perm=[1, 0])
        return self.graph.op("MatMul", x, self.graph.cast(name) if self.graph.rest != np.float32 else name)

    def table(self, path: str, ids: str) -> str:
        """Add an embedding."""
        weight, graph = self.reader.weight(path), self.graph
        if isinstance(weight, Levels):
            graph.count(f"{weight.kind} table")
            parts = [self._rows(f"{path}.{i}", half, weight, ids) for i, half in enumerate(weight.halves)]
            return parts[0] if len(parts) == 1 else graph.op("Add", *parts)
        name, narrow = graph.matrix(f"{path}.weight", weight)
        rows = graph.op("Gather", name, ids)
        return graph.cast(rows) if narrow else rows

    def norm(self, path: str, x: str, epsilon: float) -> str:
        """Add a LayerNorm."""
        weights = [
            self.graph.weight(f"{path}.{end}", self.reader.vector(f"{path}.{end}")) for end in ("weight", "bias")
        ]
        return self.graph.op("LayerNormalization", x, *weights, axis=-1, epsilon=epsilon)

    def rms_norm(self, path: str, x: str, epsilon: float) -> str:
        """Add an RMSNorm."""
        graph = self.graph
        mean = graph.op("ReduceMean", graph.op("Mul", x, x), [-1], keepdims=1)
        scaled = graph.op("Div", x, graph.op("Sqrt", graph.op("Add", mean, epsilon)))
        return graph.op("Mul", scaled, graph.weight(f"{path}.weight", self.reader.vector(f"{path}.weight")))

    def _quantized(self, path: str, weight: Levels, x: str) -> str:
        graph = self.graph
        if weight.activations is not None and self.activations == "trained":
            x = self._round(x, weight.activations, weight.clip)
        # Level 4 lets onnxruntime compute in int8; without it, it computes in float32.
        level = {"accuracy_level": 4} if self.activations == "blocks" else {}
        with place_errors(f"Onnx: {path}"):
            block = block_of(weight.shape[1], weight.group)
        graph.count(f"{weight.kind} MatMulNBits")
        parts = []
        for i, half in enumerate(weight.halves):
            blob, scales = to_blob(half, block)
            names = graph.weight(f"{path}.{i}.levels", blob), graph.weight(f"{path}.{i}.scales", scales)
            rows, columns = weight.shape
            parts.append(
                graph.op(
                    "MatMulNBits", x, *names, domain=MICROSOFT, K=columns, N=rows, bits=2, block_size=block, **level
                )
            )
        return parts[0] if len(parts) == 1 else graph.op("Add", *parts)

    def _rows(self, name: str, half: Half, weight: Levels, ids: str) -> str:
        """Look up the bytes of rows, their levels by byte in a small table, and their scales.

        Only used rows are unpacked.
        """
        graph = self.graph
        levels, scale = half
        bits = 2 if weight.kind == "ternary" else 1
        packed = pack_levels(torch.from_numpy(levels), bits).numpy()
        found = graph.cast(graph.op("Gather", graph.weight(f"{name}.levels", packed), ids), "INT32")
        found = graph.op("Reshape", graph.op("Gather", _levels_by_byte(bits), found), [0, 0, -1])
        columns = levels.shape[1]
        if columns % (8 // bits):
            found = graph.op("Slice", found, [0], [columns], [2])
        scales = graph.op("Gather", graph.weight(f"{name}.scales", scale), ids)
        if scale.shape[1] > 1:
            found = graph.op("Reshape", found, [0, 0, scale.shape[1], -1])
            scales = graph.op("Unsqueeze", scales, [3])
        found = graph.op("Mul", found, scales)
        return graph.op("Reshape", found, [0, 0, -1]) if scale.shape[1] > 1 else found

    def _round(self, x: str, how: Activations, clip: torch.Tensor | None) -> str:
        """Round an input as in training. Queries, keys and values share the nodes."""
        key = (x, how, None if clip is None else tuple(clip.tolist()))
        if key not in self._rounded:
            self._rounded[key] = round_activations(self.graph, x, how, clip)
        return self._rounded[key]


def block_of(columns: int, group: int) -> int:
    """Choose MatMulNBits' block size: the one that fills rows with the least padding.

    >>> block_of(768, 768), block_of(312, 312), block_of(768, 64), block_of(768, 16)
    (128, 64, 64, 16)
    """
    fits = [block for block in _BLOCKS if group == columns or group % block == 0]
    if not fits:
        raise ValueError(
            f"MatMulNBits has blocks of {_BLOCKS[-1]} or more, and groups of {group} have scales of their own"
        )
    wide = [block for block in fits if block > 16] or fits
    return min(wide, key=lambda block: (-(-columns // block) * block, -block))


def to_blob(half: Half, block: int) -> tuple[Array, Array]:
    """Pack a weight for MatMulNBits: bytes (rows, blocks, bytes) and scales (rows, blocks)."""
    levels, scale = half
    rows, columns = levels.shape
    count = -(-columns // block)
    packed = pack_levels(torch.from_numpy(levels), 2).numpy()
    blob = np.full((rows, count * block // 4), _ZEROS, np.uint8)
    blob[:, : packed.shape[1]] = packed
    return blob.reshape(rows, count, -1), np.repeat(scale, count // scale.shape[1], axis=1)


def round_activations(graph: Graph, x: str, how: Activations, clip: torch.Tensor | None) -> str:
    """Add the operations of ``Activations`` as nodes."""
    if clip is not None:
        _, at, zero = how.levels(torch.zeros(1), clip)
        scale: Any = at.reshape(-1).tolist()[0]
        zero = None if zero is None else zero.reshape(-1).tolist()[0]
    elif how.symmetric:
        high = graph.op("ReduceMax", graph.op("Abs", x), [-1], keepdims=1)
        scale, zero = graph.op("Max", graph.op("Div", high, float(how.top)), 1e-12), None
    else:
        low = graph.op("Min", graph.op("ReduceMin", x, [-1], keepdims=1), 0.0)
        high = graph.op("Max", graph.op("ReduceMax", x, [-1], keepdims=1), 0.0)
        scale = graph.op("Max", graph.op("Div", graph.op("Sub", high, low), float(how.top)), 1e-12)
        zero = graph.op("Round", graph.op("Div", graph.op("Neg", low), scale))
    codes = graph.op("Round", graph.op("Div", x, scale))
    if zero is not None:
        codes = graph.op("Add", codes, zero)
    if clip is not None or zero is not None:
        codes = graph.op("Clip", codes, float(-how.top if how.symmetric else 0), float(how.top))
    if zero is not None:
        codes = graph.op("Sub", codes, zero)
    return graph.op("Mul", codes, scale)


def _levels_by_byte(bits: int) -> Array:
    each = 8 // bits
    codes = np.arange(256)[:, None] >> (bits * np.arange(each)) & (2**bits - 1)
    return (codes - 2 if bits == 2 else 2 * codes - 1).astype(np.float32)
