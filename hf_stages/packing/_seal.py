"""The seal of a packed folder: what its weights and its config were when they were written, kept in config.json itself.

There it goes wherever the model goes, to the Hub and back; cards, tokenizers and whatever else lies beside may change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from hf_stages.checkpoint import checksum
from hf_stages.own_quantizer import STOP, STOP_KEY

KEY = "seal"
_CONFIG = "config.json"
_MEND = "pack the model again, or download it anew"
_OWN = "if the change is yours: hf_stages.packing.seal({folder!r})"


def seal(folder: str | Path) -> None:
    """Write the seal of a packed folder anew, after a change of one's own or ``save_pretrained``."""
    folder = Path(folder)
    config = _read(folder / _CONFIG)
    quantization = config.get("quantization_config") or {}
    files = sorted(folder.glob("*.safetensors"))
    if quantization.get("quant_method") != "hf_stages" or not files:
        raise ValueError(
            f"seal: {folder}: expected a packed folder, with quant_method hf_stages and .safetensors files"
        )
    config |= {STOP_KEY: STOP}
    seals = {"files": {file.name: [file.stat().st_size, checksum(file)] for file in files}, "config": _digest(config)}
    config["quantization_config"] = {**quantization, KEY: seals}
    (folder / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_config(file: Path, found: Any, *, sealed: bool) -> None:
    """ValueError where ``config.json`` is not what it was; ``found`` is the seal in it, if any."""
    if found is None and not sealed:
        return  # written by save_pretrained, which knows of none
    own = _OWN.format(folder=str(file.parent))
    if not isinstance(found, Mapping) or not isinstance(found.get("files"), Mapping):
        raise ValueError(f"{file}: quantization_config.{KEY} is missing or damaged; {_MEND}; {own}")
    if file.is_file() and _digest(_read(file)) != found.get("config"):
        raise ValueError(f"{file} was changed after it was written (its checksum differs); {_MEND}; {own}")


def check_files(files: Sequence[str | Path], found: Mapping[str, Any]) -> None:
    """ValueError where the files of weights are not those that the seal lists, byte for byte."""
    listed, given = found["files"], {Path(file).name: Path(file) for file in files}
    if apart := sorted(set(listed) ^ set(given)):
        which = "is missing" if apart[0] in listed else "is not one of the sealed files"
        raise ValueError(f"{apart[0]} {which} ({', '.join(sorted(listed))}); {_MEND}")
    for name, file in given.items():
        size, digest = listed[name] if isinstance(listed[name], list) and len(listed[name]) == 2 else (None, None)
        own = _OWN.format(folder=str(file.parent))
        if file.stat().st_size != size:
            raise ValueError(
                f"{file} has {file.stat().st_size} bytes, its seal in {_CONFIG} says {size}; {_MEND}; {own}"
            )
        if checksum(file) != digest:
            raise ValueError(f"{file} was changed after it was written (its checksum differs); {_MEND}; {own}")


def _digest(config: Mapping[str, Any]) -> str:
    """Of all that the config says, in whatever order and spacing."""
    quantization = {key: value for key, value in config["quantization_config"].items() if key != KEY}
    text = json.dumps({**config, "quantization_config": quantization}, sort_keys=True)
    return xxhash.xxh3_128(text.encode()).hexdigest()


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: expected the config of a packed model, and it cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: expected the config of a packed model, got a {type(found).__name__}")
    return found
