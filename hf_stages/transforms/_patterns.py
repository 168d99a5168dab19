"""Name patterns: shell wildcards over dotted parameter or module names."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from hf_stages.core.did_you_mean import sort_by_likeness


def match_names(patterns: Iterable[str], names: Iterable[str], *, where: str) -> list[str]:
    """Return the names that any pattern matches, in their own order. A pattern that matches nothing is an error.

    A pattern matches a whole dotted name, or any run of its parts: ``"layers.0"`` matches ``model.layers.0.weight``.

    >>> match_names(["layers.0", "*.bias"], ["m.layers.0.w", "m.layers.10.w", "head.bias"], where="Freeze")
    ['m.layers.0.w', 'head.bias']
    """
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        hits = [name for name in names if _matches(pattern, name)]
        if not hits:
            raise ValueError(
                f"{where}: the pattern {pattern!r} matches nothing; there are names such as "
                f"{', '.join(sort_by_likeness(pattern, names)[:5])}"
            )
        found.update(hits)
    return [name for name in names if name in found]


def _matches(pattern: str, name: str) -> bool:
    return any(fnmatchcase(f".{name}.", form) for form in (f".{pattern}.", f"*.{pattern}.*"))
