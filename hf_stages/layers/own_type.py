"""The project's own model type: for models that stock transformers has no architecture for.

Such a model's config says so on disk, ``model_type: "hf_stages"``, so that stock transformers stops instead of loading
half of it. In memory nothing changes: the config is an instance of its own class still, ``model_type`` is the
architecture's (PEFT, generation and weight conversions ask for it), and a record says what was done to the architecture.
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
_HOW = "made with hf_stages: load it with `import hf_stages` and AutoModel...from_pretrained, not by its class"
_STOPS = ("initializer_range", "initializer_factor", "use_cache")
"""On disk the words above stand in place of one of these numbers, which only building a model reads. A class's own
``from_pretrained`` merely warns about another model_type and draws the weights that it misses at random; but it checks
the types of its config, and then shows these words."""


def mark_own_type(model: Any, transform: Any) -> None:
    """Note in the model's config that ``transform`` made of it what its architecture's class cannot build."""
    if not isinstance(getattr(model, "config", None), PretrainedConfig):
        return
    for config in _configs(model):
        record = record_of(config) or {"base_model_type": config.model_type, "transforms": []}
        _mark(config, {**record, "transforms": [*record["transforms"], _written(transform)]})


def record_of(config: Any) -> dict[str, Any] | None:
    """``base_model_type`` and ``transforms`` of a config that is marked, else None."""
    return vars(config).get(TYPE)


def with_mark(config: Any) -> Any:
    """The config, as its record says: a config read by its architecture's class has the record but not the mark."""
    if (record := record_of(config)) is not None:
        _mark(config, record)
    return config


def unmarked(config: Any) -> Any:
    """A copy as the architecture's class has it."""
    config = copy.copy(config)
    if isinstance(config, _OwnType):
        object.__setattr__(config, "__class__", _base(type(config)))
    vars(config).pop(TYPE, None)
    return config


class _OwnType:
    """What a marked config does differently from its class: only how it is written and copied."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        values = {key: value for key, value in config_dict.items() if value != _HOW}
        record = dict(values.pop(TYPE))
        values |= {**record.pop("instead", {}), "model_type": record["base_model_type"]}
        made = _base(cls).from_dict(values, **kwargs)
        config, rest = made if isinstance(made, tuple) else (made, None)
        _mark(config, record)
        return config if rest is None else (config, rest)

    def to_json_string(self, use_diff: bool = True) -> str:
        values = json.loads(super().to_json_string(use_diff))  # type: ignore[misc]
        stop = _stop(_base(type(self)))
        instead = {key: values[key] for key in (stop,) if key in values}
        values |= {"model_type": TYPE, stop: _HOW, TYPE: {**values[TYPE], "instead": instead}}
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty, (_base(type(self)),), dict(vars(self))


def _base(own: Any) -> Any:
    """The architecture's config class behind the one for marked configs."""
    return own.__mro__[2]


@functools.cache
def own_config_class(kind: Any) -> Any:
    """A config class's subclass for marked configs. It goes by the same name, under which the Auto classes of tokenizers
    and processors know it; those of models are told of it by ``hf_stages.models.auto_classes``."""
    body = {"__init__": kind.__init__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    own = type(kind.__name__, (_OwnType, kind), body)
    CONFIG_MAPPING[TYPE].introduce(own, kind)
    return own


@functools.cache
def _stop(kind: Any) -> str:
    """A field that ``kind`` does not take words for; where there is none ``dtype``, which every config looks up in torch
    (but so does stock AutoTokenizer, which then stops too)."""
    for name in _STOPS:
        try:
            kind(**{name: _HOW})
        except Exception as error:
            if _HOW in str(error):
                return name
    return "dtype"


def _empty(kind: type) -> Any:
    own = own_config_class(kind)
    return own.__new__(own)


def _mark(config: Any, record: dict[str, Any]) -> None:
    kind: Any = type(config)
    if not isinstance(config, _OwnType):
        config.__class__ = own_config_class(kind)
    setattr(config, TYPE, record)


def _configs(model: Any) -> list[Any]:
    """The model's config, and its copies in the models inside it (T5's stacks), which may be saved by themselves."""
    inside = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    same = [config for config in inside if isinstance(config, type(unmarked(model.config)))]
    return list({id(config): config for config in (model.config, *same)}.values())


def _written(transform: Any) -> dict[str, Any]:
    """As in a recipe: the class's name and the arguments that differ from their defaults."""
    kind = type(transform)
    ours = kind.__module__.partition(".")[0] == "hf_stages"
    values = {}
    for f in fields(transform):
        value = getattr(transform, f.name)
        if f.default is MISSING or value != f.default:
            values[f.name] = list(value) if isinstance(value, tuple) else value
    return {"use": kind.__name__ if ours else f"{kind.__module__}:{kind.__qualname__}", **values}
