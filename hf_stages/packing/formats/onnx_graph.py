"""Build an ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hf_stages.packing.formats.model_weights import Array

OPSET, IR = 20, 10
MICROSOFT = "com.microsoft"
_PROTOBUF = 2**31 - 2**24
"""The largest size of a file that can be read. Beyond it weights are stored in a second file."""


class Graph:
    """The nodes and weights of a graph, in the order in which they were added. A value is known by its name.

    Args:
        rest: The numpy dtype of matrices that are not quantized.
    """

    def __init__(self, rest: Any) -> None:
        self.rest = rest
        self.counts: dict[str, int] = {}
        self._nodes: list[Any] = []
        self._weights: dict[str, Array] = {}
        self._numbers: dict[tuple[Any, ...], str] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, shape: list[Any]) -> str:
        """Add an input of whole numbers."""
        from onnx import TensorProto, helper

        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
        return name

    def output(self, name: str, value: str, shape: list[Any]) -> None:
        """Make a value an output of the graph."""
        from onnx import TensorProto, helper

        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def op(self, kind: str, *inputs: Any, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Add a node, whose inputs are names of values or numbers; return the name of its value, or several names."""
        from onnx import helper

        given = [value if isinstance(value, str) else self.number(value) for value in inputs]
        names = [f"{kind.lower()}_{len(self._nodes)}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, given, names, name=names[0], domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def number(self, value: Any) -> str:
        """Add a small constant in float32 or int64. Equal constants are stored once."""
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._numbers:
            self._numbers[key] = self.weight(f"number_{len(self._numbers)}", array)
        return self._numbers[key]

    def weight(self, name: str, array: Array) -> str:
        """Add a weight."""
        assert name not in self._weights
        self._weights[name] = np.asarray(array, order="C")
        return name

    def matrix(self, name: str, array: Array) -> tuple[str, bool]:
        """Add a weight as ``rest``; return its name and whether what is read from it must be cast."""
        self.count(np.dtype(self.rest).name)
        stored = array.astype(self.rest)
        if not np.isfinite(stored).all():
            raise ValueError(f"Onnx: {name}: holds values beyond float16's largest; choose rest='float32'")
        return self.weight(name, stored), stored.dtype != np.float32

    def cast(self, value: str, to: str = "FLOAT") -> Any:
        """Convert a value to another type."""
        from onnx import TensorProto

        return self.op("Cast", value, to=TensorProto.DataType.Value(to))

    def count(self, kind: str) -> None:
        """Count a tensor of a type, for the report."""
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def save(self, file: Path, description: str) -> None:
        """Write the file."""
        import onnx
        from onnx import helper, numpy_helper

        weights = [numpy_helper.from_array(array, name) for name, array in self._weights.items()]
        graph = helper.make_graph(self._nodes, "model", self._inputs, self._outputs, weights)
        model = helper.make_model(
            graph,
            producer_name="hf_stages",
            doc_string=description,
            ir_version=IR,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        )
        large = sum(array.nbytes for array in self._weights.values()) > _PROTOBUF
        more = {"save_as_external_data": True, "location": f"{file.name}.data"} if large else {}
        onnx.save(model, str(file), **more)
