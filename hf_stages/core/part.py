"""What a part of a recipe may define beside its work. Every method here is optional, for parts of any kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, Protocol

Writer = Callable[..., Any]
"""The function ``write_value``; ``to_data`` calls it to write the parts inside a part."""


class Part(Protocol):
    """A loss, transform, schedule, gate, monitor, source, curriculum, collator, metric, exporter or curve.

    A part is a class whose arguments are plain data or other parts, mostly a frozen dataclass. What it does depends on
    its kind: see the base class of the kind, such as ``Loss`` or ``Gate``. Kinds have checks of their own, which are
    called before the first step: ``check(context)`` of a gate, ``check(span, steps)`` of a schedule, ``check(model)``
    and ``check_stage(context)`` of a transform, ``check()`` of metrics.
    """

    def to_data(self, write: Writer) -> Any:
        """Return the part as plain data. Without this method it is written as its class name and its arguments."""

    def resolve(self, base: str | Path) -> Any:
        """Return the part with its relative paths taken from ``base``. Without this method it has no paths."""


def own_data(part: Any, write: Writer) -> tuple[bool, Any]:
    """Return whether a part defines ``to_data``, and what it gives."""
    to_data = getattr(type(part), "to_data", None)
    return (False, None) if to_data is None else (True, to_data(part, write))


def resolve_part(value: Any, base: str | Path) -> Any:
    """Return a part with its relative paths taken from ``base``; any other value as it is.

    >>> resolve_part("reviews", "recipes/")
    'reviews'
    """
    if isinstance(value, PurePath) or not hasattr(value, "resolve"):
        return value
    return value.resolve(base)
