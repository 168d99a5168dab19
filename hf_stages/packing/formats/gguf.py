"""GGUF: the file of llama.cpp and what is built on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_stages.packing.formats import gguf_models as models
from hf_stages.packing.formats._gguf_writing import RESTS, Writing
from hf_stages.packing.formats._report import Report
from hf_stages.packing.formats.gguf_tokens import write_tokens
from hf_stages.packing.formats.model_weights import Source, checked_name, need, new_file

_POOLINGS = ("none", "mean", "cls", "rank")


@dataclass(frozen=True)
class Gguf:
    """Ternary weights as TQ2_0, binary ones as Q1_0, all else in ``rest``; with the tokenizer of the stage folder.

    Scales become fp16, so that a weight is off by at most 2^-11 of itself (by 2^-25 where it is smaller than 2^-14). What
    the blocks cannot hold (rows that 256 or 128 do not divide, groups that are smaller, split weights) is written in
    fp16 and named in a warning; with ``strict`` it is an error.

    >>> Gguf("story.gguf", strict=True)
    Gguf(name='story.gguf', rest='float16', strict=True, tokenizer=True, pre=None, pooling=None)
    """

    name: str = "model.gguf"
    """The file's name."""
    rest: str = field(default="float16", kw_only=True)
    """``float16`` or ``float32``, of matrices that are not quantized. Vectors are float32."""
    strict: bool = field(default=False, kw_only=True)
    """True: what the format cannot hold is an error, not a warning."""
    tokenizer: bool = field(default=True, kw_only=True)
    """False: none is written, and whoever runs the model gives it token ids."""
    pre: str | None = field(default=None, kw_only=True)
    """llama.cpp's name of how a byte-level tokenizer cuts text before merging (``tokenizer.ggml.pre``); None: found out."""
    pooling: str | None = field(default=None, kw_only=True)
    """Of encoders: ``none``, ``mean``, ``cls``, or ``rank`` (a classifier's head). None: by the model's class."""

    def __post_init__(self) -> None:
        checked_name(self.name, ".gguf", "Gguf")
        if self.rest not in RESTS:
            raise ValueError(f"Gguf: rest: expected one of {', '.join(RESTS)}, got {self.rest!r}")
        if self.pooling not in (None, *_POOLINGS):
            raise ValueError(f"Gguf: pooling: expected one of {', '.join(_POOLINGS)} or None, got {self.pooling!r}")
        need("gguf", "Gguf", "gguf")

    def __call__(self, folder: str | Path, out: str | Path) -> Report:
        """Write the model of a stage folder to ``out``."""
        import gguf

        file = new_file(Path(out), self.name, "Gguf")
        source = Source(Path(folder), "Gguf", tuple(models.ARCHITECTURES))
        kind = type(source.model).__name__
        arch, write = models.ARCHITECTURES[kind]
        if self.pooling is not None and arch != "bert":
            raise ValueError(f"Gguf: pooling: expected None for a {kind}, got {self.pooling!r}")
        writer: Any = gguf.GGUFWriter(file, arch)
        writing = Writing(writer, RESTS[self.rest], self.strict)
        write(source, writing, self.pooling)
        source.done()
        vocab = source.model.get_input_embeddings().num_embeddings
        writing.notes += write_tokens(writer, Path(folder) if self.tokenizer else None, vocab, arch, self.pre)
        writing.finish()
        return Report(file, file.stat().st_size, writing.counts, tuple(writing.notes)).log()
