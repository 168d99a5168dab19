"""GGUF: the file format of llama.cpp and programs built on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_stages.packing.formats import gguf_models as models
from hf_stages.packing.formats._gguf_writing import RESTS, TensorWriter
from hf_stages.packing.formats._report import Report
from hf_stages.packing.formats.gguf_tokens import write_tokens
from hf_stages.packing.formats.model_weights import (
    WeightReader,
    check_file_name,
    check_model,
    new_file_in,
    require_package,
)

_POOLINGS = ("none", "mean", "cls", "rank")


@dataclass(frozen=True)
class Gguf:
    """A GGUF file: ternary weights as TQ2_0, binary weights as Q1_0, all others as ``rest``, and the tokenizer.

    Scales become fp16, so a weight changes by at most 2^-11 of its value (by 2^-25 below 2^-14). Weights that do not
    fit the blocks (rows that are no multiple of 256 or 128, smaller groups, split weights) are written as ``rest`` and
    named in a warning; with ``strict`` they are an error.

    >>> Gguf("story.gguf", strict=True)
    Gguf(name='story.gguf', rest='float16', strict=True, tokenizer=True, pre=None, pooling=None)
    """

    name: str = "model.gguf"
    """The file's name."""
    rest: str = field(default="float16", kw_only=True)
    """How matrices that are not quantized are stored: ``float16`` or ``float32``. Vectors are float32."""
    strict: bool = field(default=False, kw_only=True)
    """True: weights that do not fit the format's blocks are an error, not a warning."""
    tokenizer: bool = field(default=True, kw_only=True)
    """False: no tokenizer is written, and programs must give the model token ids."""
    pre: str | None = field(default=None, kw_only=True)
    """llama.cpp's name of how a byte-level tokenizer splits text (``tokenizer.ggml.pre``).

    None: found by its pattern.
    """
    pooling: str | None = field(default=None, kw_only=True)
    """How an encoder is pooled: ``none``, ``mean``, ``cls``, or ``rank`` (a classifier). None: by the model's class."""

    def __post_init__(self) -> None:
        check_file_name(self.name, ".gguf", "Gguf")
        if self.rest not in RESTS:
            raise ValueError(f"Gguf: rest: expected one of {', '.join(RESTS)}, got {self.rest!r}")
        if self.pooling not in (None, *_POOLINGS):
            raise ValueError(f"Gguf: pooling: expected one of {', '.join(_POOLINGS)} or None, got {self.pooling!r}")
        require_package("gguf", "Gguf", "gguf")

    def check(self, model: Any) -> None:
        """Refuse a stage's model that the format cannot hold, before the first step."""
        check_model(model, "Gguf", tuple(models.ARCHITECTURES))

    def __call__(self, folder: str | Path, out: str | Path) -> Report:
        """Write the model of a stage folder to ``out``."""
        import gguf

        file = new_file_in(Path(out), self.name, "Gguf")
        reader = WeightReader(Path(folder), "Gguf", tuple(models.ARCHITECTURES))
        kind = type(reader.model).__name__
        arch, write = models.ARCHITECTURES[kind]
        if self.pooling is not None and arch != "bert":
            raise ValueError(f"Gguf: pooling: expected None for a {kind}, got {self.pooling!r}")
        writer: Any = gguf.GGUFWriter(file, arch)
        tensors = TensorWriter(writer, RESTS[self.rest], self.strict)
        write(reader, tensors, self.pooling)
        reader.check_all_read()
        vocab = reader.model.get_input_embeddings().num_embeddings
        tensors.notes += write_tokens(writer, Path(folder) if self.tokenizer else None, vocab, arch, self.pre)
        tensors.finish()
        return Report(file, file.stat().st_size, tensors.counts, tuple(tensors.notes)).log()
