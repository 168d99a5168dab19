"""What a part of a recipe may define beside its work. Every method here is optional, for parts of any kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, Protocol

Writer = Callable[..., Any]
"""The function ``write_value``; ``to_data`` calls it to write the parts inside a part."""


class Part(Protocol):
    """A loss, transform, schedule, gate, monitor, source, curriculum, collator, metric, exporter or curve.

    A part is a class whose arguments are plain data or other parts, mostly a frozen dataclass. What it does depends on
    its kind: see the base class of the kind, such as ``Loss`` or ``Gate``. Kinds have checks of their own, which are
    called before the first step: ``check_stage(context)`` of a gate or transform, ``check(model)`` of a transform,
    ``check(span, steps)`` of a schedule, ``check()`` of metrics, ``check(model)`` of an exporter.
    """

    def to_data(self, write: Writer) -> Any:
        """Return the part as plain data. Without this method it is written as its class name and its arguments."""

    def resolve(self, base: str | Path) -> Any:
        """Return the part with its relative paths taken from ``base``. Without this method it has no paths."""


class Derived:
    """A member whose default follows from other members. Subclasses and their fields may give it a value instead.

    A property would not do: it could not be replaced by a field without a default.

    Args:
        of: Computes the value from the part, or from its class where only that is known.
    """

    def __init__(self, of: Callable[[Any], Any]) -> None:
        self.of = of
        self.__doc__ = of.__doc__

    def __get__(self, part: Any, kind: type | None = None) -> Any:
        return self.of(kind if part is None else part)


def own_data(part: Any, write: Writer) -> tuple[bool, Any]:
    """Return whether a part defines ``to_data(write)``, and what it gives. One of another signature is not ours."""
    to_data = getattr(type(part), "to_data", None)
    if to_data is None or not _takes(to_data, part, write):
        return False, None
    return True, to_data(part, write)


def _takes(function: Callable[..., Any], *arguments: Any) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except (TypeError, ValueError):
        return False
    return True


def resolve_part(value: Any, base: str | Path) -> Any:
    """Return a part with its relative paths taken from ``base``; any other value as it is.

    >>> resolve_part("reviews", "recipes/")
    'reviews'
    """
    if isinstance(value, PurePath) or not hasattr(value, "resolve"):
        return value
    return value.resolve(base)
