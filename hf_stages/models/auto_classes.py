"""Models of our own type in transformers' Auto classes: ``from_pretrained`` and ``from_config``.

This module is imported right after transformers, so it imports little itself.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers.configuration_utils import PretrainedConfig

TYPE = "hf_stages"


def register() -> None:
    """Register the type with ``AutoConfig``. Model classes are registered when a config of the type is made."""
    from transformers.models.auto.configuration_auto import AutoConfig

    AutoConfig.register(TYPE, OwnConfig, exist_ok=True)


class OwnConfig(PretrainedConfig):
    """The type's entry in ``AutoConfig``. It reads marked configs of the architecture's own class."""

    model_type = TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        from transformers import CONFIG_MAPPING

        from hf_stages.layers.own_type import own_config_class

        base = (config_dict.get(TYPE) or {}).get("base_model_type")
        if base not in CONFIG_MAPPING:
            raise ValueError(
                f"config.json: model_type is {TYPE!r}; expected {TYPE}.base_model_type to name an architecture of "
                f"transformers, got {base!r}; load the stage folder as it was saved, with a transformers that has it"
            )
        return own_config_class(CONFIG_MAPPING[base]).from_dict(config_dict, **kwargs)

    @staticmethod
    def introduce(own: Any, kind: Any) -> None:
        """Register a new class of marked configs with every Auto class that has a model for the architecture."""
        from transformers.models.auto import modeling_auto

        for name in dir(modeling_auto):
            auto = getattr(modeling_auto, name)
            mapping = getattr(auto, "_model_mapping", None)
            if name.startswith("AutoModel") and mapping is not None and kind in mapping:
                auto.register(own, _make_entry(mapping, kind), exist_ok=True)


def _make_entry(mapping: Any, kind: Any) -> type:
    """Make the entry of an Auto class for marked configs: it builds and loads models of the architecture's class."""

    def model_class(config: Any) -> Any:
        found = mapping[kind]
        found = list(found) if isinstance(found, list | tuple) else [found]
        listed = [cls for cls in found if cls.__name__ in (config.architectures or ())]
        return (listed or found)[0]

    class Entry:
        @classmethod
        def _from_config(cls, config: Any, **options: Any) -> Any:
            from hf_stages.models.own_models import build

            return build(model_class(config), config, **options)

        @classmethod
        def from_pretrained(cls, path: Any, *args: Any, config: Any, **options: Any) -> Any:
            from hf_stages.models.own_models import read

            model = _from_stage(model_class(config), path, config, options) if not args else None
            return model if model is not None else read(model_class(config), path, *args, config=config, **options)

    return Entry


_KNOWN_OPTIONS = frozenset({"dtype", "torch_dtype", "trust_remote_code", "revision", "adapter_kwargs", "_from_auto"})


def _from_stage(kind: Any, path: Any, config: Any, options: dict[str, Any]) -> Any:
    """Load a stage folder's model with all its transforms, so that quantized layers keep their latent weights.

    None where something else is asked for: another head, a changed config, devices.
    """
    from hf_stages.core.sealed_folders import STAGE_FILE
    from hf_stages.models.stage_models import load_stage

    folder = Path(path)
    if (
        not (folder / STAGE_FILE).is_file()
        or (folder / "adapter_config.json").is_file()
        or set(options) - _KNOWN_OPTIONS
    ):
        return None
    if kind.__name__ not in (config.architectures or ()) or not _config_unchanged(config, folder):
        return None
    model, _ = load_stage(folder, trust_remote_code=bool(options.get("trust_remote_code")))
    if type(model) is not kind:
        return None
    if config._attn_implementation is not None:
        model.set_attn_implementation(config._attn_implementation)
    dtype = options.get("dtype", options.get("torch_dtype"))
    return model if dtype in (None, "auto") else model.to(dtype)


def _config_unchanged(config: Any, folder: Path) -> bool:
    from transformers import AutoConfig

    idle = ("dtype", "torch_dtype", "_name_or_path", "name_or_path", "transformers_version")
    values = [copy.copy(c.to_dict()) for c in (config, AutoConfig.from_pretrained(folder))]
    return values[0].keys() == values[1].keys() and all(
        values[0][key] == values[1][key] for key in values[0] if key not in idle
    )
