"""The seal of a packed folder: checksums of its weights and of its config, written into config.json.

So it goes wherever the model goes, to the Hub and back. Model cards, tokenizers and other files may change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from hf_stages.core.sealed_folders import checksum_file
from hf_stages.packing._stop_text import STOP_KEY, STOP_TEXT

KEY = "seal"
_CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_HOW_TO_MEND = "pack the model again, or download it anew"
_OWN_CHANGE = "if the change is yours: hf_stages.packing.seal({folder!r})"


def seal(folder: str | Path) -> None:
    """Write the seal of a packed folder again, after a change of your own or after ``save_pretrained``."""
    folder = Path(folder)
    config = _read(folder / _CONFIG)
    quantization = config.get("quantization_config") or {}
    files = sorted(folder.glob("*.safetensors"))
    if quantization.get("quant_method") != "hf_stages" or not files:
        raise ValueError(
            f"seal: {folder}: expected a packed folder, with quant_method hf_stages and .safetensors files"
        )
    config |= {STOP_KEY: STOP_TEXT}
    seals = {"files": _sums(files), "config": _digest(config)}
    if index := _sums(sorted(folder.glob("*.safetensors.index.json"))):
        seals["index"] = index
    config["quantization_config"] = {**quantization, KEY: seals}
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_config(file: Path, found: Any) -> None:
    """Refuse a ``config.json`` that was changed; ``found`` is the seal in it."""
    own = _OWN_CHANGE.format(folder=str(file.parent))
    if not isinstance(found, Mapping) or not {"files", "config"} <= set(found) <= {"files", "config", "index"}:
        found = {}
    if not isinstance(found.get("files"), Mapping) or not isinstance(found.get("index", {}), Mapping):
        raise ValueError(f"{file}: quantization_config.{KEY} is missing or damaged; {_HOW_TO_MEND}; {own}")
    if file.is_file() and _digest(_read(file)) != found.get("config"):
        raise ValueError(f"{file} was changed after it was written (its checksum differs); {_HOW_TO_MEND}; {own}")


def check_folder(folder: Path, found: Mapping[str, Any] | None) -> None:
    """Refuse a folder that lacks a file of weights or has a damaged index, before transformers looks for them."""
    if found is not None:
        files, index = found["files"], found.get("index", {})
        if lost := next((name for name in sorted({*files, *index}) if not (folder / name).is_file()), None):
            raise ValueError(f"{folder / lost} is missing, its seal in {_CONFIG} lists it; {_HOW_TO_MEND}")
        for name in index:
            _check(folder / name, index[name])
    file = folder / _INDEX
    if file.is_file() and not (folder / "model.safetensors").is_file():
        whole = _read(file, "the index of a packed model's files")
        shards = whole.get("weight_map")
        if not isinstance(whole.get("metadata"), dict) or not isinstance(shards, dict) or not shards:
            raise ValueError(f"{file}: expected metadata and a weight_map; {_HOW_TO_MEND}")
        for name in dict.fromkeys(shards.values()):
            if not isinstance(name, str) or not (folder / name).is_file():
                raise ValueError(f"{folder / str(name)} is missing, {_INDEX} lists it; {_HOW_TO_MEND}")


def check_files(files: Sequence[str | Path], found: Mapping[str, Any]) -> None:
    """Refuse files of weights that differ from those that the seal lists."""
    listed, given = found["files"], {Path(file).name: Path(file) for file in files}
    if apart := sorted(set(listed) ^ set(given)):
        which = "is missing" if apart[0] in listed else "is not one of the sealed files"
        raise ValueError(f"{apart[0]} {which} ({', '.join(sorted(listed))}); {_HOW_TO_MEND}")
    for name, file in given.items():
        _check(file, listed[name])


def _check(file: Path, sums: Any) -> None:
    size, digest = sums if isinstance(sums, list) and len(sums) == 2 else (None, None)
    own = _OWN_CHANGE.format(folder=str(file.parent))
    if not file.is_file():
        raise ValueError(f"{file} is missing, its seal in {_CONFIG} lists it; {_HOW_TO_MEND}")
    if file.stat().st_size != size:
        raise ValueError(
            f"{file} has {file.stat().st_size} bytes, its seal in {_CONFIG} says {size}; {_HOW_TO_MEND}; {own}"
        )
    if checksum_file(file) != digest:
        raise ValueError(f"{file} was changed after it was written (its checksum differs); {_HOW_TO_MEND}; {own}")


def _sums(files: Sequence[Path]) -> dict[str, Any]:
    return {file.name: [file.stat().st_size, checksum_file(file)] for file in files}


def _digest(config: Mapping[str, Any]) -> str:
    """Compute a checksum of the config's values, whatever their order and spacing."""
    quantization = {key: value for key, value in config["quantization_config"].items() if key != KEY}
    text = json.dumps({**config, "quantization_config": quantization}, sort_keys=True)
    return xxhash.xxh3_128(text.encode()).hexdigest()


def _read(file: Path, what: str = "the config of a packed model") -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected {what}, and it cannot be read ({error}); {_HOW_TO_MEND}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: expected {what}, got a {type(found).__name__}; {_HOW_TO_MEND}")
    return found
