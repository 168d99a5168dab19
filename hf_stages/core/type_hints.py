"""Check and convert a part's plain arguments by its type hints. Hints of other types are ignored."""

from __future__ import annotations

import types
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hf_stages.core.curves import CURVES, Curve, as_curve
from hf_stages.core.duration import Duration
from hf_stages.core.registry import Where

_TYPE_WORDS = {float: "a number", int: "a whole number", str: "text", bool: "true or false", type(None): "null"}
_TYPE_WORDS |= {Curve: "a curve such as Linear(1, 0)", Duration: 'a duration such as "100 steps"'}


def hints_of(target: Any) -> dict[str, Any]:
    """Return the type hints of the constructor's arguments; none where they cannot be read."""
    try:
        own = get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
        return {**(get_type_hints(target) if isinstance(target, type) else {}), **own}
    except (NameError, TypeError, AttributeError):
        return {}


def union_members(hint: Any) -> tuple[Any, ...]:
    """List the types of a union; any other hint is its own only member."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(member for part in get_args(hint) for member in union_members(part))
    return () if hint is None else (hint,)


def takes_text(hint: Any) -> bool:
    """Whether a hint allows text."""
    return any(m is str or get_origin(m) is Literal for m in union_members(hint))


def keeps_list(hint: Any) -> bool:
    """Whether a hint asks for a list, so that a list does not become a tuple."""
    return any(m is list or get_origin(m) is list for m in union_members(hint))


def key_type(hint: Any) -> type:
    """Return the type of a mapping's keys, int or str. YAML and JSON have text only."""
    for member in union_members(hint):
        origin, arguments = get_origin(member), get_args(member)
        if isinstance(origin, type) and issubclass(origin, Mapping) and arguments and arguments[0] is int:
            return int
    return str


def convert_scalar(value: Any, hint: Any, where: Where) -> Any:
    """Turn text into a curve or a duration where the hint says so, and refuse what fits no type of the hint."""
    known = union_members(hint)
    if isinstance(value, str) and Curve in known and value.split("(")[0].strip() in CURVES and "(" in value:
        return _parse(as_curve, value, where)
    if isinstance(value, str) and Duration in known:
        return _parse(Duration.parse, value, where)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and Curve in known and not {float, int, str} & set(known):
        return as_curve(value)
    plain = all(m in _TYPE_WORDS or get_origin(m) is Literal for m in known)
    if known and plain and not any(value_fits(value, m) for m in known):
        raise where.error(f"expected {' or '.join(map(describe_hint, known))}, got {value!r}")
    return value


def _parse(parse: Any, text: str, where: Where) -> Any:
    with where.wrap():
        return parse(text)


def value_fits(value: Any, member: Any) -> bool:
    """Whether a value is of one type of a hint."""
    if get_origin(member) is Literal:
        return any(type(value) is type(a) and value == a for a in get_args(member))
    if member is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if member is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    return isinstance(value, member)


def describe_hint(member: Any) -> str:
    """Describe one type of a hint, for an error message."""
    if get_origin(member) is Literal:
        return "one of " + ", ".join(repr(a) for a in get_args(member))
    return _TYPE_WORDS[member]
