"""An ONNX graph while it is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hf_stages.packing.formats.model_weights import Array

OPSET, IR = 20, 10
MICROSOFT = "com.microsoft"
_PROTOBUF = 2**31 - 2**24
"""A file of more bytes cannot be read; weights then lie beside it."""


class Graph:
    """Nodes and weights in the order they were asked for. Values are known by their names."""

    def __init__(self, rest: Any) -> None:
        self.rest = rest
        self.counts: dict[str, int] = {}
        self._nodes: list[Any] = []
        self._weights: dict[str, Array] = {}
        self._numbers: dict[tuple[Any, ...], str] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, shape: list[Any]) -> str:
        from onnx import TensorProto, helper

        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
        return name

    def output(self, name: str, value: str, shape: list[Any]) -> None:
        from onnx import TensorProto, helper

        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def op(self, kind: str, *inputs: Any, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """A node; names of values, or numbers, come in, and the name of its value goes out (names, where several do)."""
        from onnx import helper

        given = [value if isinstance(value, str) else self.number(value) for value in inputs]
        names = [f"{kind.lower()}_{len(self._nodes)}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, given, names, name=names[0], domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def number(self, value: Any) -> str:
        """Small constants: floats are float32, whole numbers int64. Equal ones are one."""
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._numbers:
            self._numbers[key] = self.weight(f"number_{len(self._numbers)}", array)
        return self._numbers[key]

    def weight(self, name: str, array: Array) -> str:
        assert name not in self._weights
        self._weights[name] = np.asarray(array, order="C")
        return name

    def matrix(self, name: str, array: Array) -> tuple[str, bool]:
        """A weight that is not quantized, stored as ``rest``; whether what is read of it must be cast."""
        self.count(np.dtype(self.rest).name)
        made = array.astype(self.rest)
        if not np.isfinite(made).all():
            raise ValueError(f"Onnx: {name}: holds values beyond float16's largest; choose rest='float32'")
        return self.weight(name, made), made.dtype != np.float32

    def cast(self, value: str, to: str = "FLOAT") -> Any:
        from onnx import TensorProto

        return self.op("Cast", value, to=TensorProto.DataType.Value(to))

    def count(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def save(self, file: Path, description: str) -> None:
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
