"""Errors of building a model from a config become ValueErrors that name the field, whatever a library raises."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_LARGEST = 2**53
_SIZE = re.compile(r"^(num|n|max)_|_(size|dim|layers|heads|experts|embeddings)$")


def check_sizes(values: Mapping[str, Any], config: Any, where: str) -> None:
    """Refuse numbers that cannot be sizes. The default values in ``config`` show which fields are sizes."""
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        usual = getattr(config, key, None)
        is_size = _SIZE.search(key) and (usual is None or (isinstance(usual, int) and usual >= 0))
        if abs(value) > _LARGEST or (is_size and value < 0):
            expected = "a number of at least 0" if value < 0 else "a smaller number"
            raise ValueError(f"{where}.{key}: expected {expected}, got {value}")


@contextmanager
def naming_fields(values: Mapping[str, Any], where: str) -> Iterator[None]:
    """Turn an error of a model's class about these config values into a message such as ``config.hidden_act: ...``."""
    try:
        yield
    except (MemoryError, ImportError, OSError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        text = _root_message(error)
        key = _field_in_error(values, error, text)
        if key is not None:
            raise ValueError(f"{where}.{key}: no model can be built with {values[key]!r}: {text}") from error
        if isinstance(error, ValueError):  # about something else, such as auto_class
            raise
        raise ValueError(f"{where}: no model can be built from it: {text}") from error


def _root_message(error: Exception) -> str:
    """Return the first line of the error that caused all others, without the C++ frames that torch adds."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _field_in_error(values: Mapping[str, Any], error: Exception, text: str) -> str | None:
    """Return the key that the error is about, by its name or value; None where that is not one key."""
    words = set(re.findall(r"\w+", f"{error} {text}"))
    if isinstance(error, ZeroDivisionError):
        named = [key for key, value in values.items() if type(value) in (int, float) and value == 0]
    else:
        named = [key for key in values if key in words]
        named = named or [key for key, value in values.items() if _mentions(text, value)]
    return named[0] if len(named) == 1 else None


def _mentions(text: str, value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple):
        return any(_mentions(text, item) for item in (value.values() if isinstance(value, Mapping) else value))
    if isinstance(value, str):
        return value != "" and repr(value) in text
    return type(value) in (int, float) and re.search(rf"(?<![\w.-]){re.escape(str(value))}(?![\w.])", text) is not None
