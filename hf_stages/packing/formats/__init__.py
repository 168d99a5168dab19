"""Formats: exporters, which write a stage's model for other programs. One file each.

An exporter is called with a stage's folder and the folder to write to, and returns a report.
"""

from typing import TYPE_CHECKING, Any

from hf_stages.core.exports import Exports

if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`
    from hf_stages.packing.formats.gguf import Gguf as Gguf
    from hf_stages.packing.formats.onnx import Onnx as Onnx

_EXPORTS = Exports(__name__, ("exporters",))


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
