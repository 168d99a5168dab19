"""A short text that is the same for equal objects in every process: no memory addresses, no ``id()``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from hf_stages.core.recorded_modules import recorded_module

_LONG = 64


def fingerprint(value: Any) -> str:
    """Return the fingerprint of a dataset, a model, a function, a tokenizer or plain data.

    Of a dataset without a fingerprint of its own, only the length and the first and last example are read.

    >>> fingerprint(len), fingerprint([1, 2]) == fingerprint([1, 2]), fingerprint([1, 2]) == fingerprint([2, 1])
    ('builtins.len', True, False)
    """
    own = getattr(value, "_fingerprint", None)
    if isinstance(own, str):  # datasets.Dataset keeps one of its data and every map()
        return own
    if isinstance(value, FunctionType | BuiltinFunctionType | type):
        return _name(value)
    if isinstance(value, list | tuple) and len(value) > _LONG:  # examples in memory: a dataset like any other
        return hashlib.sha256(_ends(value).encode()).hexdigest()[:16]
    return hashlib.sha256(_describe(value).encode()).hexdigest()[:16]


def describe_kind(value: Any) -> str:
    """Name the kind of an object that a recipe file cannot hold: ``model``, ``dataset``, ``function`` ..."""
    if is_model(value):
        return "model"
    if isinstance(value, FunctionType | BuiltinFunctionType | MethodType | partial):
        return "function"
    if _is_dataset(value):
        return "dataset"
    return "tokenizer" if hasattr(value, "get_vocab") else type(value).__name__


def is_model(value: Any) -> bool:
    """Whether a value is a model, told by its methods so that torch need not be imported."""
    return callable(getattr(value, "named_parameters", None)) and callable(getattr(value, "state_dict", None))


def _is_dataset(value: Any) -> bool:
    plain = isinstance(value, Mapping | str | bytes)
    return not plain and (hasattr(value, "__getitem__") or hasattr(value, "__iter__")) and not callable(value)


def _describe(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, Enum):
        return _describe(value.value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{_describe(k)}: {_describe(v)}" for k, v in value.items())) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(_describe, value))) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_describe, value)) + "]"
    if isinstance(value, partial):
        return f"partial({_describe(value.func)}, {_describe(value.args)}, {_describe(value.keywords)})"
    if isinstance(value, MethodType):
        return f"{_describe(value.__self__)}.{value.__name__}"
    if isinstance(value, FunctionType | BuiltinFunctionType | type):
        return _name(value)
    return f"{_name(type(value))}{_content(value)}"


def _content(value: Any) -> str:
    if isinstance(own := getattr(value, "_fingerprint", None), str):
        return own
    if is_model(value):
        return _model(value)
    if hasattr(value, "get_vocab"):
        return _tokenizer(value)
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        return f"({value.dtype}, {getattr(value, 'shape', ())}, {value.tolist()})"
    if is_dataclass(value):
        return "(" + ", ".join(f"{f.name}={_describe(getattr(value, f.name, None))}" for f in fields(value)) + ")"
    if hasattr(value, "__len__") and hasattr(value, "__getitem__"):
        return _ends(value)
    features = getattr(value, "features", None)  # a streaming dataset knows no more than its columns
    return f"({features})" if isinstance(features, Mapping) else ""


def _model(model: Any) -> str:
    config: Any = getattr(model, "config", None)
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    values = {k: v for k, v in values.items() if k not in ("transformers_version", "_name_or_path", "name_or_path")}
    return f"({json.dumps(values, sort_keys=True, default=str)}, {sum(p.numel() for p in model.parameters())})"


def _tokenizer(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _describe(tokenizer.get_vocab())
    state = json.loads(backend.to_str())
    # A call with truncation or padding changes these two.
    return json.dumps({k: v for k, v in state.items() if k not in ("truncation", "padding")}, sort_keys=True)


def _ends(dataset: Any) -> str:
    length = len(dataset)
    try:
        ends = [_describe(dataset[index]) for index in ({0, length - 1} if length else ())]
    except Exception as error:  # an example may fail to load for reasons of its own; the length still counts
        ends = [type(error).__name__]
    return f"({length}, {ends})"


def _name(target: Any) -> str:
    return f"{recorded_module(str(target.__module__))}.{target.__qualname__}"
