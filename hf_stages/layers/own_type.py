"""A model type of our own, for models that no architecture of transformers describes.

On disk the config of such a model has ``model_type: "hf_stages"``, so that transformers alone stops with an error,
where it would load half of the weights. In memory the config still is of its own class and has its own ``model_type``,
which PEFT, generation and weight conversions read. A record in the config says how the architecture was changed.
"""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import MISSING, fields
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

TYPE = "hf_stages"
"""``model_type`` on disk, and the name of the record in the config."""
_STOP_WORDS = "made with hf_stages: load it with `import hf_stages` and AutoModel...from_pretrained, not by its class"
_STOP_FIELDS = ("initializer_range", "initializer_factor", "use_cache")
"""Numeric fields that only building a model reads. On disk one of them holds the text above in place of its number.

A class's own ``from_pretrained`` only warns about another model_type, and draws missing weights at random. But it
checks the types of its config, and its error then shows the text.
"""


def mark_own_type(model: Any, transform: Any, built_with: dict[str, Any] | None = None) -> None:
    """Note in a model's config that ``transform`` changed it beyond what its architecture's class can build.

    ``built_with`` are values of config fields that the plain model is built with, where the transform changes them.
    """
    if not isinstance(getattr(model, "config", None), PretrainedConfig):
        return
    for config in _configs_in(model):
        record = record_of(config) or {"base_model_type": config.model_type, "transforms": []}
        if built_with:
            record = {**record, "built_with": {**record.get("built_with", {}), **built_with}}
        _mark(config, {**record, "transforms": [*record["transforms"], _recorded(transform)]})


def record_of(config: Any) -> dict[str, Any] | None:
    """Return ``base_model_type`` and ``transforms`` of a marked config; None for any other config."""
    return vars(config).get(TYPE)


def with_mark(config: Any) -> Any:
    """Mark a config that has a record but was read by its architecture's class, which sets no mark."""
    if (record := record_of(config)) is not None:
        _mark(config, record)
    return config


def unmarked(config: Any) -> Any:
    """Return a copy of a config without mark and record."""
    config = copy.copy(config)
    if isinstance(config, _OwnType):
        object.__setattr__(config, "__class__", _plain_class(type(config)))
    record = vars(config).pop(TYPE, None) or {}
    for key, value in record.get("built_with", {}).items():
        setattr(config, key, value)
    return config


class _OwnType:
    """How a marked config differs from its class: in how it is written and copied."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        values = {key: value for key, value in config_dict.items() if value != _STOP_WORDS}
        record = dict(values.pop(TYPE))
        values |= {**record.pop("instead", {}), "model_type": record["base_model_type"]}
        made = _plain_class(cls).from_dict(values, **kwargs)
        config, rest = made if isinstance(made, tuple) else (made, None)
        _mark(config, record)
        return config if rest is None else (config, rest)

    def to_json_string(self, use_diff: bool = True) -> str:
        values = json.loads(super().to_json_string(use_diff))  # type: ignore[misc]
        stop = _stop_field(_plain_class(type(self)))
        instead = {key: values[key] for key in (stop,) if key in values}
        values |= {"model_type": TYPE, stop: _STOP_WORDS, TYPE: {**values[TYPE], "instead": instead}}
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty_instance, (_plain_class(type(self)),), dict(vars(self))


def _plain_class(own: Any) -> Any:
    """Return the architecture's config class behind a class for marked configs."""
    return own.__mro__[2]


@functools.cache
def own_config_class(kind: Any) -> Any:
    """Make the subclass of a config class for marked configs.

    It has the same name, by which the Auto classes of tokenizers and processors find it.
    ``hf_stages.models.auto_classes`` registers it with the Auto classes of models.
    """
    body = {"__init__": kind.__init__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    own = type(kind.__name__, (_OwnType, kind), body)
    CONFIG_MAPPING[TYPE].introduce(own, kind)
    return own


@functools.cache
def _stop_field(kind: Any) -> str:
    """Return a field that must be a number in this config class; else ``dtype``, which every config looks up in torch.

    AutoTokenizer looks ``dtype`` up too, and so stops with the same error.
    """
    for name in _STOP_FIELDS:
        try:
            kind(**{name: _STOP_WORDS})
        except Exception as error:
            if _STOP_WORDS in str(error):
                return name
    return "dtype"


def _empty_instance(kind: type) -> Any:
    own = own_config_class(kind)
    return own.__new__(own)


def _mark(config: Any, record: dict[str, Any]) -> None:
    kind: Any = type(config)
    if not isinstance(config, _OwnType):
        config.__class__ = own_config_class(kind)
    setattr(config, TYPE, record)


def _configs_in(model: Any) -> list[Any]:
    """Return the model's config, and its copies in models inside it (T5's stacks), which may be saved on their own."""
    inside = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    same = [config for config in inside if isinstance(config, type(unmarked(model.config)))]
    return list({id(config): config for config in (model.config, *same)}.values())


def _recorded(transform: Any) -> dict[str, Any]:
    """Write a transform as in a recipe: the class's name and the arguments that differ from their defaults."""
    kind = type(transform)
    ours = kind.__module__.partition(".")[0] == "hf_stages"
    values = {}
    for f in fields(transform):
        value = getattr(transform, f.name)
        if f.default is MISSING or value != f.default:
            values[f.name] = list(value) if isinstance(value, tuple) else value
    return {"use": kind.__name__ if ours else f"{kind.__module__}:{kind.__qualname__}", **values}
