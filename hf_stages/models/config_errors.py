"""Failures of building a model from a config as ValueErrors that name the field, whatever a library raises deep inside."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_LARGEST = 2**53
_SIZE = re.compile(r"^(num|n|max)_|_(size|dim|layers|heads|experts|embeddings)$")


def check_sizes(values: Mapping[str, Any], config: Any, where: str) -> None:
    """Refuse numbers that no size can be; ``config`` is one of the class, whose own value tells what is a size."""
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        usual = getattr(config, key, None)
        counted = _SIZE.search(key) and (usual is None or (isinstance(usual, int) and usual >= 0))
        if abs(value) > _LARGEST or (counted and value < 0):
            expected = "a number of at least 0" if value < 0 else "a smaller number"
            raise ValueError(f"{where}.{key}: expected {expected}, got {value}")


@contextmanager
def naming_fields(values: Mapping[str, Any], where: str) -> Iterator[None]:
    """Turn what a model's class raises over these values of its config into ``config.hidden_act: ...``."""
    try:
        yield
    except (MemoryError, ImportError, OSError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        text = _text_of(error)
        key = _field(values, error, text)
        if key is not None:
            raise ValueError(f"{where}.{key}: no model can be built with {values[key]!r}: {text}") from error
        if isinstance(error, ValueError):  # it is about something else, such as auto_class
            raise
        raise ValueError(f"{where}: no model can be built from it: {text}") from error


def _text_of(error: Exception) -> str:
    """The first line of the error below all others, without the C++ frames that torch adds."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _field(values: Mapping[str, Any], error: Exception, text: str) -> str | None:
    """The one key that the error tells of, by its name or by its value; None where it may be several or none."""
    words = set(re.findall(r"\w+", f"{error} {text}"))
    if isinstance(error, ZeroDivisionError):
        told = [key for key, value in values.items() if type(value) in (int, float) and value == 0]
    else:
        told = [key for key in values if key in words]
        told = told or [key for key, value in values.items() if _shows(text, value)]
    return told[0] if len(told) == 1 else None


def _shows(text: str, value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple):
        return any(_shows(text, item) for item in (value.values() if isinstance(value, Mapping) else value))
    if isinstance(value, str):
        return value != "" and repr(value) in text
    return type(value) in (int, float) and re.search(rf"(?<![\w.-]){re.escape(str(value))}(?![\w.])", text) is not None
