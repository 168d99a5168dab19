"""Writes the lines of Python that load a folder's model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_OURS = "hf_stages"


def how_to_load(folder: Path, shown: str, summary: Mapping[str, Any] | None = None) -> list[str]:
    """Return about three lines. ``shown`` is the folder's path, ``summary`` its ``stage.json`` if it is a stage's."""
    config = _config(folder)
    if _is_packed(config):
        return [f"import {_OURS}", *_from_pretrained(config, shown, auto=True)]
    if summary is not None and needs_rebuilding(folder, summary):
        trust = "" if summary["base"]["class"].startswith("transformers.") else ", trust_remote_code=True"
        return ["from hf_stages import StagedTrainer", "", f'model = StagedTrainer.from_stage("{shown}"{trust}).model']
    if (folder / "base" / "config.json").is_file():
        return _by_peft(folder, shown)
    if config.get("model_type") == _OURS:
        return [f"import {_OURS}", *_from_pretrained(config, shown, auto=True)]
    return _from_pretrained(config, shown, auto=False)


def needs_rebuilding(folder: Path, summary: Mapping[str, Any]) -> bool:
    """Return whether stock transformers cannot load a stage's model from its folder: it has quantized layers or
    adapters."""
    rounds = bool((summary.get("size") or {}).get("quantized"))
    return summary["base"]["config"] is not None and (rounds or has_adapter(folder))


def has_adapter(folder: Path) -> bool:
    """Return whether a folder has an adapter, beside the base's weights or in a folder of its own."""
    return (folder / "adapter_config.json").is_file() or any(folder.glob("adapter/**/adapter_config.json"))


def _by_peft(folder: Path, shown: str) -> list[str]:
    """Load base and adapter from their own folders; PEFT keeps further adapters in folders of their names."""
    base = _from_pretrained(_config(folder / "base"), f"{shown}/base", auto=False)
    places = sorted(path.parent.relative_to(folder) for path in folder.glob("adapter/**/adapter_config.json"))
    lines = [*base[:1], "from peft import PeftModel", "", base[-1].replace("model =", "base =")]
    lines.append(
        f'model = PeftModel.from_pretrained(base, "{shown}/{places[0].as_posix()}", "{_adapter_name(places[0])}")'
    )
    lines += [f'model.load_adapter("{shown}/{place.as_posix()}", "{place.name}")' for place in places[1:]]
    return lines if len(places) == 1 else [*lines, "# and model.set_adapter, with the one that is to be used"]


def _adapter_name(place: Path) -> str:
    return "default" if place.name == "adapter" else place.name


def _from_pretrained(config: Mapping[str, Any], shown: str, *, auto: bool) -> list[str]:
    kind = (config.get("architectures") or [None])[0]
    name = (_auto_class(kind) if auto else kind) or "AutoModel"
    import transformers

    if not hasattr(transformers, name):
        return [f"# with the class that it was trained with, {name}", f'model = {name}.from_pretrained("{shown}")']
    return [f"from transformers import {name}", "", f'model = {name}.from_pretrained("{shown}")']


def _auto_class(kind: str | None) -> str | None:
    """Return the Auto class that makes this class of model, preferably the one for its task."""
    from transformers.models.auto import modeling_auto

    found = []
    for name in dir(modeling_auto):
        mapping = getattr(getattr(modeling_auto, name), "_model_mapping", None)
        if name.startswith("AutoModel") and mapping is not None and kind in _names(mapping):
            found.append(name)
    return next(
        (name for name in found if name.startswith("AutoModelFor") and "PreTraining" not in name),
        found[0] if found else None,
    )


def _names(mapping: Any) -> set[str]:
    several = (value if isinstance(value, list | tuple) else (value,) for value in mapping._model_mapping.values())
    return {name for names in several for name in names}


def _is_packed(config: Mapping[str, Any]) -> bool:
    return (config.get("quantization_config") or {}).get("quant_method") == _OURS


def _config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
