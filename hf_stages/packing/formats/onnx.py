"""ONNX: the file format of onnxruntime."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_stages.packing.formats import _onnx_models as models
from hf_stages.packing.formats._report import Report
from hf_stages.packing.formats.model_weights import (
    WeightReader,
    check_file_name,
    check_model,
    new_file_in,
    require_package,
)
from hf_stages.packing.formats.onnx_graph import Graph
from hf_stages.packing.formats.onnx_layers import Layers

_ACTIVATIONS = ("trained", "blocks", "full")
_RESTS = {"float32": np.float32, "float16": np.float16}


@dataclass(frozen=True)
class Onnx:
    """An ONNX file with quantized layers in two bits (onnxruntime's MatMulNBits), which computes in float32.

    Levels and scales are those that were trained, and by default activations are rounded as in training.
    ``activations="blocks"`` is faster. Binary weights take two bits here, split ones two bits twice. A decoder has no
    cache: it gives the logits of complete sequences. The stage folder's tokenizer is copied beside the file.

    >>> Onnx(activations="blocks")
    Onnx(name='model.onnx', activations='blocks', rest='float32')
    """

    name: str = "model.onnx"
    """The file's name."""
    activations: str = field(default="trained", kw_only=True)
    """How inputs of quantized layers are rounded. ``trained``: as in training. ``full``: not at all. ``blocks``: to 8
    bits by onnxruntime, with a range for each block of weights, so that it can compute in integers."""
    rest: str = field(default="float32", kw_only=True)
    """How matrices that are not quantized are stored: ``float32`` or ``float16``."""

    def __post_init__(self) -> None:
        check_file_name(self.name, ".onnx", "Onnx")
        if self.activations not in _ACTIVATIONS:
            raise ValueError(f"Onnx: activations: expected one of {', '.join(_ACTIVATIONS)}, got {self.activations!r}")
        if self.rest not in _RESTS:
            raise ValueError(f"Onnx: rest: expected one of {', '.join(_RESTS)}, got {self.rest!r}")
        require_package("onnx", "Onnx", "onnx")

    def check(self, model: Any) -> None:
        """Refuse a stage's model that the format cannot hold, before the first step."""
        check_model(model, "Onnx", tuple(models.ARCHITECTURES))

    def __call__(self, folder: str | Path, out: str | Path) -> Report:
        """Write the model of a stage folder to ``out``."""
        file = new_file_in(Path(out), self.name, "Onnx")
        reader = WeightReader(Path(folder), "Onnx", tuple(models.ARCHITECTURES))
        layers = Layers(Graph(_RESTS[self.rest]), reader, self.activations)
        models.ARCHITECTURES[type(reader.model).__name__](layers)
        reader.check_all_read()
        layers.graph.save(file, f"{type(reader.model).__name__} of stage {Path(folder).name}")
        for extra in reader.files:
            shutil.copy2(extra, Path(out) / extra.name)
        size = sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*"))
        return Report(file, size, layers.graph.counts).log()
