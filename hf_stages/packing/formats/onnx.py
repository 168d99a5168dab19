"""ONNX, for onnxruntime."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hf_stages.packing.formats import _onnx_models as models
from hf_stages.packing.formats._report import Report
from hf_stages.packing.formats.model_weights import Source, checked_name, need, new_file
from hf_stages.packing.formats.onnx_graph import Graph
from hf_stages.packing.formats.onnx_layers import Layers

_ACTIVATIONS = ("trained", "blocks", "full")
_RESTS = {"float32": np.float32, "float16": np.float16}


@dataclass(frozen=True)
class Onnx:
    """Quantized linear layers as onnxruntime's MatMulNBits of two bits, quantized tables as bytes; computes in float32.

    Levels and scales are those that were trained, and by default activations too; ``activations="blocks"`` is what is fast.
    Binary weights take two bits here, split ones twice two. A decoder has
    no cache: it gives the logits of whole sequences. The stage folder's tokenizer is copied beside the file.

    >>> Onnx(activations="blocks")
    Onnx(name='model.onnx', activations='blocks', rest='float32')
    """

    name: str = "model.onnx"
    """The file's name."""
    activations: str = field(default="trained", kw_only=True)
    """What enters quantized layers is rounded as in ``trained``; not at all: ``full``; by onnxruntime itself, to 8 bits and
    with a range for each of the weights' ``blocks``, which lets it compute in whole numbers."""
    rest: str = field(default="float32", kw_only=True)
    """``float32``, or ``float16``: how matrices that are not quantized are stored."""

    def __post_init__(self) -> None:
        checked_name(self.name, ".onnx", "Onnx")
        if self.activations not in _ACTIVATIONS:
            raise ValueError(f"Onnx: activations: expected one of {', '.join(_ACTIVATIONS)}, got {self.activations!r}")
        if self.rest not in _RESTS:
            raise ValueError(f"Onnx: rest: expected one of {', '.join(_RESTS)}, got {self.rest!r}")
        need("onnx", "Onnx", "onnx")

    def __call__(self, folder: str | Path, out: str | Path) -> Report:
        """Write the model of a stage folder to ``out``."""
        file = new_file(Path(out), self.name, "Onnx")
        source = Source(Path(folder), "Onnx", tuple(models.ARCHITECTURES))
        layers = Layers(Graph(_RESTS[self.rest]), source, self.activations)
        models.ARCHITECTURES[type(source.model).__name__](layers)
        source.done()
        layers.graph.save(file, f"{type(source.model).__name__} of stage {Path(folder).name}")
        for extra in source.files:
            shutil.copy2(extra, Path(out) / extra.name)
        size = sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*"))
        return Report(file, size, layers.graph.counts).log()
