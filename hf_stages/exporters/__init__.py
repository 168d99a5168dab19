"""Exporters: a stage's model in the files of other programs."""

from hf_stages.exporters.gguf import Gguf as Gguf
from hf_stages.exporters.onnx import Onnx as Onnx

__all__ = ["Gguf", "Onnx"]
