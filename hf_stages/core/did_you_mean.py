"""Which known names to show where one is not known: the nearest first, so that cutting the list loses the farthest."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_MOST = 12


def did_you_mean(name: object, known: Iterable[str], *, there_are: str = "expected one of") -> str:
    """The end of an error message: the nearest known name, or the known ones.

    >>> did_you_mean("temprature", ["temperature", "beta"])
    "did you mean 'temperature'?"
    """
    known = list(known)
    if not known and there_are == "there are":
        return "there are none"
    lower = {k.lower(): k for k in reversed(known)}
    text = str(name).lower()
    begun = [k for k in lower if len(text) > 1 and k.startswith(text)]  # "acc" is far from "accuracy" by its letters
    near = begun if len(begun) == 1 else difflib.get_close_matches(text, lower, n=1)
    if near:
        return f"did you mean {lower[near[0]]!r}?"
    return f"{there_are} {list_names(name, known)}"


def list_names(name: object, known: Iterable[str], most: int = _MOST) -> str:
    """All known names in their order; of many the nearest ones, and how many more there are.

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
    """Most alike first: letters in common, above all at the beginning. Of dotted names the most alike part counts, and
    of those that differ only in their numbers (blocks of a model) the first stands for all.

    >>> sort_by_likeness("query", ["model.layers.0.mlp", "model.layers.0.q_proj", "model.layers.1.q_proj"])
    ['model.layers.0.q_proj', 'model.layers.0.mlp']
    """
    forms: dict[str, str] = {}
    for one in known:
        forms.setdefault(re.sub(r"\d+", "*", one), one)
    text = str(name).lower()
    return sorted(forms.values(), key=lambda one: -_likeness(text, one.lower()))


def _likeness(name: str, other: str) -> float:
    return max(_of_parts(name, part) for part in (other, *other.split(".")))


def _of_parts(name: str, part: str) -> float:
    same = next((i for i, (a, b) in enumerate(zip(name, part, strict=False)) if a != b), min(len(name), len(part)))
    return difflib.SequenceMatcher(None, name, part).ratio() + same / max(len(name), len(part), 1)
