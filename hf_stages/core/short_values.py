"""How error messages show values: short, and in words where Python's own form says little."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_LONG = re.compile(r"'[^'\n]{300,}'|\"[^\"\n]{300,}\"|\[[^\[\]]{600,}\]|\{[^{}]{600,}\}|\([^()]{600,}\)|\S{300,}")
_SHOWN, _LONGEST = 80, 4000
"""Characters of a long value, and of a message, that are shown."""


def shorten_message(message: str) -> str:
    """Cut long values in a message; their beginning is enough to recognize them.

    >>> shorten_message("expected text, got '" + 400 * "ab" + "'; leave it out")[:40]
    "expected text, got 'abababababababababab"
    """
    cut = _LONG.sub(lambda found: f"{found[0][:_SHOWN]}... ({len(found[0])} characters)", message)
    return cut if len(cut) <= _LONGEST else f"{cut[:_LONGEST]}... ({len(cut)} characters)"


def describe_value(value: Any) -> str:
    """Describe a value in a few words.

    >>> describe_value({"a": 1, "b": 2}), describe_value([1, 2]), describe_value(None), describe_value("x")
    ('a mapping of a, b', 'a list of 2', 'nothing', "'x'")
    """
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(map(str, value))}" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "nothing" if value is None else repr(value)
