"""Read parts (losses, transforms, gates, curves ...) from plain data and write them back.

A part is written as ``{use: ClassName, argument: value}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from types import FunctionType
from typing import Any

from hf_stages.core.curves import as_curve
from hf_stages.core.did_you_mean import did_you_mean
from hf_stages.core.duration import Duration
from hf_stages.core.fingerprint import describe_kind, fingerprint, is_model
from hf_stages.core.part import own_data
from hf_stages.core.registry import (
    KIND_OF_KEY,
    Where,
    check_arguments,
    find_class,
    find_custom,
    has_part,
    importable_as,
    parameters_of,
)
from hf_stages.core.source_sketch import classes_and_functions
from hf_stages.core.type_hints import convert_scalar, hints_of, keeps_list, key_type, takes_text

_MISSING = object()
_ALGEBRA = "hf_stages.losses.base"
_COLLATORS = "transformers.data.data_collator"
_COLLATOR_NAMES = re.compile(r"DataCollator(?!Mixin)|^default_data_collator$")
SUPPLIED_ARGUMENTS = ("tokenizer", "processing_class", "model")
"""Arguments of a collator that the trainer supplies, because a recipe cannot hold them."""
_CLASS_NAME_KEYS = frozenset(
    {"loss", "losses", "transforms", "schedule", "gates", "then", "notify", "monitors", "exporters"}
)
"""Keys under which text is the name of a class. Under other keys (``teacher``, ``sources``) it may be another name."""


def part_from_dict(data: Mapping[str, Any] | str, key: str, *, trust_remote_code: bool = False) -> Any:
    """Read one part as it stands under ``key`` in a recipe (``"transforms"``, ``"loss"`` ...).

    >>> part_from_dict({"use": "Above", "metric": "eval_f1", "value": 0.9}, "gates")
    Above(metric='eval_f1', value=0.9)
    """
    where = Where(path=(key,), trusted=trust_remote_code)
    return read_loss(data, where) if key == "loss" else read_part(data, [KIND_OF_KEY[key]], where)


def part_to_dict(part: Any, key: str) -> Any:
    """Write a part as plain data; ``part_from_dict`` reads it back."""
    return write_loss(part) if key == "loss" else write_value(part, key)


def read_part(value: Any, folders: Sequence[str], where: Where) -> Any:
    """Read a part from its class name or from ``{use: ClassName, ...}``."""
    use, arguments = split_use(value, where)
    if "losses" in folders:
        return _read_loss_part(use, arguments, folders, where)
    return build_part(find_target(use, folders, where), arguments, folders, where)


def split_use(value: Any, where: Where) -> tuple[str, dict[str, Any]]:
    """Split ``{use: ClassName, ...}`` into the class name and the arguments."""
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, Mapping):
        raise where.error(f"expected a class name or {{use: ClassName, ...}}, got {value!r}")
    refuse_in_memory(value, where)
    if "use" not in value:
        raise where.error(f"expected {{use: ClassName, ...}}, got a mapping of {', '.join(value)} without 'use'")
    if not isinstance(value["use"], str):
        raise (where / "use").error(f"expected a class name, got {value['use']!r}")
    return value["use"], {key: argument for key, argument in value.items() if key != "use"}


def refuse_in_memory(value: Mapping[str, Any], where: Where) -> None:
    """Refuse the record of an object that existed only in memory."""
    if "in_memory" in value:
        raise where.error(
            f"a {value['in_memory']} that existed only in memory (fingerprint {value.get('fingerprint')}); "
            "a file cannot hold it: give it from Python, or name it by a path"
        )


def find_target(use: str, folders: Sequence[str], where: Where) -> Any:
    """Return the class or function that ``use`` names: a part of ours, or ``module:Class`` from outside."""
    return find_custom(use, where) if ":" in use else find_class(use, folders, where)


def build_part(target: Any, arguments: Mapping[str, Any], folders: Sequence[str], where: Where) -> Any:
    """Call a class with its arguments, after reading the parts in them. A function is the part itself."""
    if not isinstance(target, type):
        if arguments:
            raise where.error(f"{target.__name__} is a function: it stands for itself and takes no arguments here")
        return target
    check_arguments(target, arguments, where)
    hints = hints_of(target)
    read = {key: read_argument(key, v, hints.get(key), folders, where / key) for key, v in arguments.items()}
    with where.wrap(read):
        return target(**read)


def read_argument(key: str, value: Any, hint: Any, folders: Sequence[str], where: Where) -> Any:
    """Read one argument of a part: a part, curve, list, mapping or plain value."""
    inner = [KIND_OF_KEY[key], "curves"] if key in KIND_OF_KEY else ["curves", *(f for f in folders if f != "curves")]
    if key == "loss" and not (isinstance(value, str) and takes_text(hint)):
        return read_loss(value, where)
    if key == "collator" and (isinstance(value, str) or (isinstance(value, Mapping) and "use" in value)):
        return read_collator(value, where)
    if isinstance(value, Mapping):
        refuse_in_memory(value, where)
        if "use" in value:
            return read_part(value, inner, where)
        if key == "collators":
            return {k: None if v is None else read_collator(v, where / k) for k, v in value.items()}
        to_key = key_type(hint)
        with where.wrap():
            return {to_key(k): read_argument(key, v, None, folders, where / k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [read_argument(key, item, None, folders, where / index) for index, item in enumerate(value)]
        # Arguments of frozen dataclasses are tuples, unless the class says list.
        return items if keeps_list(hint) else tuple(items)
    if isinstance(value, str) and key in _CLASS_NAME_KEYS and not takes_text(hint):
        return read_part(value, inner, where)
    return convert_scalar(value, hint, where)


def read_loss(value: Any, where: Where) -> Any:
    """Read a loss, a list of losses (their sum), or a mapping from source to loss."""
    if isinstance(value, list | tuple):
        if not value:
            raise where.error(
                "expected at least one loss, got an empty list; leave the key out for the model's own loss"
            )
        terms = [read_loss(item, where / index) for index, item in enumerate(value)]
        return terms[0] if len(terms) == 1 else where.load(_ALGEBRA, "Sum")(tuple(terms))
    if isinstance(value, Mapping) and not {"use", "in_memory"} & set(value):
        if set(value) & {"class", "type", "_target_"}:
            written = next(key for key in ("class", "type", "_target_") if key in value)
            raise where.error(f"expected {{use: ClassName, ...}}, got {written!r} in the place of 'use'")
        if "weight" in value or not all(isinstance(v, str | list | tuple | Mapping) for v in value.values()):
            raise where.error(f"expected {{use: ClassName, ...}}, got a mapping of {', '.join(value)} without 'use'")
        return {source: read_loss(loss, where / source) for source, loss in value.items()}
    return read_part(value, ["losses"], where)


def read_collator(value: Any, where: Where) -> Any:
    """Read a collator of ours, or one of transformers' by its name."""
    use, arguments = split_use(value, where)
    if ":" in use or has_part(use, ["data"]):
        return read_part(value, ["data"], where)
    known = [n for n in classes_and_functions(_COLLATORS) if _COLLATOR_NAMES.search(n)]
    if use not in known:
        raise where.error(f"unknown part {use!r} in hf_stages.data or transformers; {did_you_mean(use, known)}")
    for key, argument in arguments.items():
        if isinstance(argument, Mapping):
            refuse_in_memory(argument, where / key)
    target = where.load(_COLLATORS, use)
    if use == "default_data_collator":  # a function is the part itself, even where it is sketched as a class
        return target if where.sketched else build_part(target, arguments, [], where)
    check_arguments(target, arguments, where, supplied=SUPPLIED_ARGUMENTS)
    return where.load("hf_stages.data.collators.collator", "Collator")(use, arguments)


def _read_loss_part(use: str, arguments: dict[str, Any], folders: Sequence[str], where: Where) -> Any:
    target = where.load(_ALGEBRA, use) if use in ("Sum", "Scaled") else find_target(use, folders, where)
    own = isinstance(target, type) and "weight" in parameters_of(target)
    weight = _MISSING if own else arguments.pop("weight", _MISSING)
    loss = build_part(target, arguments, folders, where)
    return loss if weight is _MISSING else where.load(_ALGEBRA, "Scaled")(read_weight(weight, where / "weight"), loss)


def read_weight(value: Any, where: Where) -> Any:
    """Read the weight of a loss: a number or a curve."""
    if isinstance(value, Mapping):
        return read_part(value, ["curves"], where)
    with where.wrap():
        return as_curve(value)


# ---- writing --------------------------------------------------------------------------------------------------------


def write_value(value: Any, key: str = "", folders: Sequence[str] = ()) -> Any:
    """Write a part or an argument as plain data. What exists only in memory is recorded by its fingerprint."""
    if isinstance(value, Enum):
        return write_value(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Duration | PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): write_value(v, key, folders) for k, v in value.items()}
    if isinstance(value, list | tuple):
        if key in ("source", "sources", "into", "dataset") and any(isinstance(item, Mapping) for item in value):
            return record_in_memory(value)  # rows
        return [write_value(item, key, folders) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((write_value(item, key, folders) for item in value), key=repr)
    if type(value).__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    return _write_object(value, [KIND_OF_KEY[key], "curves"] if key in KIND_OF_KEY else ["curves", *folders])


def _write_object(value: Any, folders: Sequence[str]) -> Any:
    defined, data = own_data(value, write_value) if is_part(value) else (False, None)
    if defined:
        return data
    if isinstance(value, FunctionType):
        if value.__module__.startswith("transformers.data.data_collator"):
            return value.__name__
        name = importable_as(value)
        return {"use": name} if name else record_in_memory(value)
    name = _use_name(type(value), folders) if is_part(value) else None
    if name is None:
        return record_in_memory(value)
    try:
        arguments = dict(arguments_of(value))
    except AttributeError:  # not every class keeps its arguments under their own names
        return record_in_memory(value)
    if _is_collator(value):
        name = type(value).__name__
    return {"use": name, **{k: write_value(v, k, [f for f in folders if f != "curves"]) for k, v in arguments.items()}}


def record_in_memory(value: Any) -> dict[str, str]:
    """Record an object that a file cannot hold: its kind and its fingerprint."""
    return {"in_memory": describe_kind(value), "fingerprint": fingerprint(value)}


def is_part(value: Any) -> bool:
    """Whether a value is a part: a class of ours or a subclass, a frozen dataclass, or a collator of transformers.

    A model is no part, and neither is a frozen dataclass with items, which may be a long dataset.
    """
    ours = any(base.__module__.split(".")[0] == "hf_stages" for base in type(value).__mro__)
    if is_model(value) and not any(base.__name__ == "Loss" for base in type(value).__mro__):
        return False
    return ours or (_is_frozen(value) and not hasattr(value, "__getitem__")) or _is_collator(value)


def _is_frozen(value: Any) -> bool:
    return is_dataclass(value) and type(value).__dataclass_params__.frozen  # type: ignore[union-attr]


def _is_collator(value: Any) -> bool:
    return is_dataclass(value) and type(value).__module__ == "transformers.data.data_collator"


def _use_name(cls: type, folders: Sequence[str]) -> str | None:
    if cls.__module__ == "hf_stages.losses.base" and "losses" in folders:
        return cls.__name__
    if cls.__module__.split(".")[0] == "hf_stages" and has_part(cls.__name__, folders):
        return cls.__name__ if find_class(cls.__name__, folders, Where()) is cls else importable_as(cls)
    return importable_as(cls)


def arguments_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the arguments of a part's constructor that differ from their defaults, in their order."""
    defaults = {}
    if is_dataclass(value):
        for f in fields(value):
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            if f.init:
                defaults[f.name] = default
    else:
        defaults = {
            name: MISSING if p.default is p.empty else p.default
            for name, p in parameters_of(type(value)).items()
            if p.kind is not p.VAR_KEYWORD
        }
    for name, default in defaults.items():
        current = getattr(value, name)
        if default is MISSING or not _same(current, default):
            yield name, current


def _same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))


def write_loss(loss: Any) -> Any:
    """Write a loss in its shortest form: a sum becomes a list, a weight an argument of the part."""
    if isinstance(loss, Mapping):
        return {str(source): write_loss(part) for source, part in loss.items()}
    written = write_value(loss, "loss")
    is_sum = isinstance(written, dict) and set(written) == {"use", "losses"} and len(written["losses"]) > 1
    return written["losses"] if is_sum else written
