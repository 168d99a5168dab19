"""The model of a recipe: pretrained weights from a path, or random weights from a config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_stages.core.did_you_mean import did_you_mean
from hf_stages.core.hub_names import explain_hub_lookup
from hf_stages.models.config_errors import check_sizes, naming_fields


@dataclass(frozen=True)
class ModelSource:
    """``model: {path: ...}`` or ``model: {config: {model_type: llama, ...}, auto_class: AutoModelForCausalLM}``.

    >>> ModelSource(config={"model_type": "llama", "hidden_size": 64}).auto_class
    'AutoModelForCausalLM'
    """

    path: str | None = None
    """A folder or a name on the Hub."""
    auto_class: str = "AutoModelForCausalLM"
    """Which class of ``transformers`` builds it, e.g. ``AutoModelForSequenceClassification``."""
    config: Mapping[str, Any] | None = None
    """A config with ``model_type``: its weights are drawn from torch's global generator."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Config fields to change in a pretrained model, e.g. ``num_labels: 3``."""
    dtype: str | None = None
    """``float32``, ``bfloat16``, ``float16`` or ``auto`` (as saved). None: transformers' default."""
    revision: str | None = None
    """The version on the Hub: a branch, a tag or a commit."""
    attn_implementation: str | None = None
    """How attention is computed, in transformers' words, such as ``sdpa`` or ``eager``."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.config is None):
            got = "neither" if self.path is None else "both"
            raise ValueError(f"a model comes from a path or from a config: expected exactly one of the two, got {got}")
        for key in ("config", "overrides"):
            value = getattr(self, key)
            if value is not None and not isinstance(value, Mapping):
                raise ValueError(f"{key}: expected a mapping, got {value!r}")
            object.__setattr__(self, key, None if value is None else dict(value))
        if self.path is not None and not isinstance(self.path, str):
            raise ValueError(f"path: expected a folder or a name on the Hub, got {self.path!r}")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config: model_type is missing, e.g. model_type: llama")
        if self.config is not None and not isinstance(self.config["model_type"], str):
            raise ValueError(f"config: model_type: expected text such as llama, got {self.config['model_type']!r}")
        if self.config is not None and self.overrides:
            raise ValueError("overrides: they change a pretrained model's config; write these keys in config itself")
        if not str(self.auto_class).startswith("AutoModel"):
            raise ValueError(f"auto_class: expected a class such as AutoModelForCausalLM, got {self.auto_class!r}")

    def resolve(self, base: str | Path) -> ModelSource:
        """Return the source with a relative path taken from ``base`` (the recipe's folder), where that path exists."""
        if self.path is None or not os.path.exists(Path(base) / self.path):
            return self
        return replace(self, path=str(Path(base) / self.path))

    def load(self, *, trust_remote_code: bool = False, **more: Any) -> Any:
        """Load the model. Code beside the weights runs only with ``trust_remote_code``.

        ``more`` is given to ``from_pretrained``, such as quantization and devices.
        """
        auto, options = self._auto(), self._options()
        config = self._config(trust_remote_code)
        with self._naming_fields():
            if self.path is None:
                return auto.from_config(config, **options)
            more |= {"revision": self.revision or "main", "trust_remote_code": trust_remote_code}
            return auto.from_pretrained(self.path, config=config, **options, **more)

    def skeleton(self, *, trust_remote_code: bool = False) -> Any:
        """Build the same model on the meta device: names and shapes, no weights."""
        import torch

        auto, options = self._auto(), self._options()
        config = self._config(trust_remote_code)
        with self._naming_fields(), torch.device("meta"):
            return auto.from_config(config, trust_remote_code=trust_remote_code, **options)

    def _naming_fields(self) -> AbstractContextManager[None]:
        """Name the field in errors about config values. A path without overrides has no values in the recipe."""
        values = self.overrides if self.config is None else self.config
        return naming_fields(values, "overrides" if self.config is None else "config") if values else nullcontext()

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self.dtype is not None:
            options["dtype"] = _dtype(self.dtype)
        if self.attn_implementation is not None:
            options["attn_implementation"] = self.attn_implementation
        return options

    def _auto(self) -> Any:
        import transformers

        known = [name for name in dir(transformers) if name.startswith("AutoModel")]
        if self.auto_class not in known:
            raise ValueError(
                f"auto_class: transformers has no {self.auto_class!r}; {did_you_mean(self.auto_class, known)}"
            )
        return getattr(transformers, self.auto_class)

    def _config(self, trust_remote_code: bool) -> Any:
        from transformers import AutoConfig

        if self.config is not None:
            return _config_from(self.config)
        assert self.path is not None
        options = {"revision": self.revision or "main", "trust_remote_code": trust_remote_code}
        with explain_hub_lookup(self.path):
            config = AutoConfig.from_pretrained(self.path, **options)
        _check_keys(self.overrides, config, "overrides")
        check_sizes(self.overrides, config, "overrides")
        for key, value in self.overrides.items():
            with naming_fields({key: value}, "overrides"):
                setattr(config, key, value)
        return config


def _config_from(values: Mapping[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    model_type = values["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"config: unknown model_type {model_type!r}; {did_you_mean(model_type, list(CONFIG_MAPPING))}")
    rest = {key: value for key, value in values.items() if key != "model_type"}
    usual = AutoConfig.for_model(model_type)
    _check_keys(rest, usual, "config")
    check_sizes(rest, usual, "config")
    with naming_fields(rest, "config"):
        return AutoConfig.for_model(model_type, **rest)


def _check_keys(values: Mapping[str, Any], config: Any, where: str) -> None:
    known = {*config.to_dict(), *config.attribute_map, "num_labels", "rope_theta"}
    for key in values:
        if key not in known and not hasattr(config, key):
            raise ValueError(
                f"{where}: {type(config).__name__} has no {key!r}; {did_you_mean(key, sorted(known - {'model_type'}))}"
            )


def _dtype(name: str) -> Any:
    import torch

    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if name == "auto" or isinstance(dtype, torch.dtype):
        return name if name == "auto" else dtype
    raise ValueError(f"dtype: expected float32, bfloat16, float16 or auto, got {name!r}")
