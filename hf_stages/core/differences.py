"""What differs between two recipes, or between any two nested mappings of plain data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_FINGERPRINT = re.compile("[0-9a-f]{16}")


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List what differs between two results of ``to_dict``, one readable line for each difference.

    >>> diff({"name": "code", "until": "9 steps"}, {"name": "code", "until": "8 steps"})
    ['stages.code.until: 9 steps -> 8 steps']
    >>> diff({"train_dataset": "0123456789abcdef"}, {"train_dataset": "fedcba9876543210"})
    ['train_dataset: other content than before, by its fingerprint']
    """
    name = old.get("name")
    before, after = dict(_leaves(old)), dict(_leaves(new))
    prefix = f"stages.{name}." if name is not None and "until" in old else ""
    lines = []
    for path in dict.fromkeys([*before, *after]):
        was, now = before.get(path, "(left out)"), after.get(path, "(left out)")
        if was != now:
            hashed = all(isinstance(value, str) and _FINGERPRINT.fullmatch(value) for value in (was, now))
            change = "other content than before, by its fingerprint" if hashed else f"{was} -> {now}"
            lines.append(f"{prefix}{path}: {change}")
    return lines


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            has_name = isinstance(item, Mapping) and "name" in item
            yield from _leaves(item, f"{path}.{item['name']}" if has_name else f"{path}[{index}]")
    else:
        yield path, value
