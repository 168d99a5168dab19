"""What stands on what: a stage on its parent, that one on its own parent, up to the initial model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_Node = TypeVar("_Node")


def lineage(last: _Node, parent_of: Callable[[_Node], _Node | None]) -> tuple[_Node, ...]:
    """Return all that ``last`` stands on, from the first one on, and ``last`` itself at the end.

    >>> lineage("code", {"language": None, "math": "language", "code": "language"}.get)
    ('language', 'code')
    """
    found = [last]
    while (parent := parent_of(found[0])) is not None:
        found.insert(0, parent)
    return tuple(found)
