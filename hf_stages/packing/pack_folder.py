"""Pack a stage folder, or a model, into a folder of packed weights."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from hf_stages.core.sealed_folders import CARD, SEAL
from hf_stages.packing._portable import write_portable
from hf_stages.packing._sizes import PackedSize
from hf_stages.packing._write import write_packed
from hf_stages.packing.convert import check_packable
from hf_stages.reports.cards.model_card import packed_card

SUMMARY = "packed.json"
_RESTS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def pack(
    model: Any,
    out: str | Path,
    *,
    rest: str = "float16",
    embeddings: str | None = "int8",
    portable: bool = False,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> PackedSize:
    """Write a model to a folder with its quantized weights packed, and return the size of the files by part.

    Binary layers take 1 bit a weight, ternary ones 2, split ones 1 bit twice. Each row or group takes 4 bytes for its
    scale. The loaded model has exactly the weights that were trained. Tokenizers and processors in the stage folder are
    copied too.

    Args:
        model: A model with quantized layers, or the folder of a stage. out: The folder to write. rest: How weights that
        are not packed are stored: ``float16``, ``bfloat16`` or ``float32``. They compute in float32
            when they are loaded, unless ``from_pretrained(dtype=...)`` says otherwise.
        embeddings: ``int8`` stores word embeddings that are in full precision with 8 bits a weight; None leaves them.
        portable: Whether to write what transformers reads without hf_stages. Activations are then not rounded.
        max_shard_size: The largest size of a file.
        overwrite: Whether to replace a folder that is not empty.
        trust_remote_code: Whether code in the stage folder may run.

    >>> pack("out/02-binary", "packed")  # doctest: +SKIP
    """
    out = Path(out)
    if rest not in _RESTS:
        raise ValueError(f"rest: expected one of {', '.join(_RESTS)}, got {rest!r}")
    if embeddings not in ("int8", None):
        raise ValueError(f"embeddings: expected 'int8' or None, got {embeddings!r}")
    _refuse_in_use(out, overwrite)
    source = Path(model) if isinstance(model, str | Path) else None
    if source is not None and out.resolve() in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"out: {out} is, or holds, the folder to be packed; choose another one")
    if source is None:
        check_packable(model)  # before it is copied
    own, extras = read_stage(source, trust_remote_code) if source is not None else (copy.deepcopy(model), [])
    write = write_portable if portable else write_packed
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        size = write(own, partial, _RESTS[rest], embeddings, max_shard_size)
        for extra in extras:
            shutil.copy2(extra, partial / extra.name)
        about = {"format": "gemma" if portable else "hf_stages", "rest": rest, "source": source and source.name}
        (partial / SUMMARY).write_text(json.dumps({**about, "size": size.to_dict()}, indent=2) + "\n", encoding="utf-8")
        (partial / CARD).write_text(packed_card(partial, out.name, source, size.to_dict()), encoding="utf-8")
        _refuse_in_use(out, overwrite)  # once more: another process may have written it meanwhile
        if out.exists():
            shutil.rmtree(out)
        partial.chmod(0o755)  # temporary folders are for their owner alone
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return size


def _refuse_in_use(out: Path, overwrite: bool) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise ValueError(f"out: {out} is not empty; choose another folder, or say overwrite=True (--overwrite)")


def read_stage(folder: Path, trust_remote_code: bool = False) -> tuple[Any, list[Path]]:
    """Load the model of a stage folder, and list the files beside it that packing copies."""
    from hf_stages.models.stage_models import load_stage

    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a stage folder, and there is none")
    if (folder / SUMMARY).is_file():
        raise ValueError(f"{folder}: is packed already; pack the stage folder that it was made of")
    model, _ = load_stage(folder, trust_remote_code=trust_remote_code)
    written = {"config.json", "generation_config.json", "stage.json", "run.json", "bench.json", SUMMARY, SEAL}
    keep = (".json", ".txt", ".model", ".jinja", ".tiktoken")
    return model, [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and file.suffix in keep and file.name not in written and ".index." not in file.name
    ]
