"""Which known names an error shows where a name is not known. The most similar ones come first."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_MOST = 12
_NEAR = 0.61
"""How alike names must be to be taken for one another: three of five letters in common are no misspelling."""


def did_you_mean(
    name: object, known: Iterable[str], *, there_are: str = "expected one of", listed: Iterable[str] | None = None
) -> str:
    """Return the end of an error message: the most similar known name, or a list of the known names (or of ``listed``).

    >>> did_you_mean("temprature", ["temperature", "beta"])
    "did you mean 'temperature'?"
    """
    known = list(known)
    if not known and there_are == "there are":
        return "there are none"
    lower = {k.lower(): k for k in reversed(known)}
    text = str(name).lower()
    # "acc" and "accuracy" share too few letters for difflib.
    longer = [k for k in lower if len(text) > 1 and k.startswith(text)]
    near = longer if len(longer) == 1 else difflib.get_close_matches(text, lower, n=1, cutoff=_NEAR)
    if near:
        return f"did you mean {lower[near[0]]!r}?"
    return f"{there_are} {list_names(name, known if listed is None else listed)}"


def list_names(name: object, known: Iterable[str], most: int = _MOST) -> str:
    """List the known names in their order; of many, the most similar ones and how many more there are.

    >>> list_names("query", ["down_proj", "q_proj", "up_proj"], most=2)
    'q_proj, up_proj and 1 more'
    """
    known = list(known)
    if not known:
        return "nothing"
    if len(known) <= most:
        return ", ".join(known)
    return f"{', '.join(sort_by_likeness(name, known)[:most])} and {len(known) - most} more"


def sort_by_likeness(name: object, known: Iterable[str]) -> list[str]:
    """Sort names by likeness, the most similar first: letters in common count, above all at the beginning.

    A dotted name is as similar as its most similar part. Names that differ only in their numbers (blocks of a model)
    are shown once.

    >>> sort_by_likeness("query", ["layers.0.mlp", "layers.0.q_proj", "layers.1.q_proj"])
    ['layers.0.q_proj', 'layers.0.mlp']
    """
    by_pattern: dict[str, str] = {}
    for one in known:
        by_pattern.setdefault(re.sub(r"\d+", "*", one), one)
    text = str(name).lower()
    return sorted(by_pattern.values(), key=lambda one: -_likeness(text, one.lower()))


def _likeness(name: str, other: str) -> float:
    return max(_likeness_of_part(name, part) for part in (other, *other.split(".")))


def _likeness_of_part(name: str, part: str) -> float:
    same = next((i for i, (a, b) in enumerate(zip(name, part, strict=False)) if a != b), min(len(name), len(part)))
    return difflib.SequenceMatcher(None, name, part).ratio() + same / max(len(name), len(part), 1)
