"""Load the model of a stage folder: build the initial structure, apply the transforms, read the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from hf_stages.core.parts import part_from_dict
from hf_stages.core.sealed_folders import STAGE_FILE, TRAINING_STATE, find_damage, read_json
from hf_stages.models.structure import Blueprint, load_weights, replay


def load_stage(folder: str | Path, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load the model of a stage folder, and its tokenizer or processor (None where the run had none)."""
    folder = Path(folder)
    summary = read_json(folder / STAGE_FILE, "a stage folder of hf_stages")
    if (folder / TRAINING_STATE).is_dir() and (problem := find_damage(folder)) is not None:
        raise ValueError(f"{folder}: {problem}")
    blueprint = Blueprint.from_dict(summary["base"], trust_remote_code=trust_remote_code)
    transforms = [
        part_from_dict(part, "transforms", trust_remote_code=trust_remote_code) for part in summary["transforms"]
    ]
    model = replay(blueprint.build(), transforms)
    load_weights(model, folder)
    blueprint.mark(model, transforms)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval(), _processing_class(folder)


def _processing_class(folder: Path) -> Any:
    if not any(
        (folder / name).is_file()
        for name in ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
    ):
        return None
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    for kind in (AutoProcessor, AutoTokenizer, AutoImageProcessor):
        try:
            return kind.from_pretrained(folder)
        except (ValueError, OSError, TypeError):
            continue
    return None
