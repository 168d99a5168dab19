"""Writes numbers and parts as short text, for tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import MISSING, fields, is_dataclass
from typing import Any


def count(value: float | None, *, exact: bool = True) -> str:
    """Write a number of things in at most six characters.

    >>> count(950), count(12_345), count(1.5e9), count(None), count(70, exact=False)
    ('950', '12.3k', '1.5B', '-', '~70')
    """
    if value is None:
        return "-"
    sign = "" if exact else "~"
    for scale, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= scale:
            return f"{sign}{_trim(value / (1e3 if letter == 'k' else scale))}{letter}"
    return f"{sign}{value:,.0f}"


def size(value: float | None) -> str:
    """Write a number of bytes.

    >>> size(3_250_000), size(512), size(None)
    ('3.25 MB', '512 B', '-')
    """
    if value is None:
        return "-"
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= scale:
            return f"{_trim(value / scale)} {unit}"
    return f"{value:.0f} B"


def mebibytes(value: float | None) -> str:
    """Write bytes in MiB, as papers on compression do.

    >>> mebibytes(417.64 * 2**20), mebibytes(2.853 * 2**20), mebibytes(300), mebibytes(None)
    ('417.6 MiB', '2.85 MiB', '0.0003 MiB', '-')
    """
    if value is None:
        return "-"
    found = value / 2**20
    places = 1 if found >= 10 else 2 if found >= 0.1 else 4
    text = f"{found:,.{places}f}"
    return f"{text.rstrip('0').removesuffix('.')} MiB" if places == 4 else f"{text} MiB"


def bits(value: float | None) -> str:
    """Write bits per weight.

    >>> bits(1.0877), bits(16.0), bits(None)
    ('1.09', '16', '-')
    """
    return "-" if value is None else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Write seconds in the unit that fits.

    >>> [duration(s) for s in (0.4, 59, 90, 7300, 200_000, None)]
    ['0.4 s', '59 s', '1.5 min', '2 h', '2.3 d', '-']
    """
    if seconds is None:
        return "-"
    for scale, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= scale:
            return f"{seconds / scale:.1f}".removesuffix(".0") + f" {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def rate(lr: float) -> str:
    """Write a learning rate.

    >>> rate(5e-5), rate(0), rate(0.01), rate(1.25e-4)
    ('5e-5', '0', '0.01', '1.25e-4')
    """
    if lr == 0 or not math.isfinite(lr):
        return f"{lr:g}"
    if lr >= 1e-2:
        return f"{lr:.3g}"
    mantissa, exponent = f"{lr:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def part(value: Any) -> str:
    """Write a part as its call, without defaults, and losses as a person writes them.

    >>> from hf_stages.gates import Below
    >>> from hf_stages.losses import TaskLoss
    >>> part(Below("eval_loss", 3.2)), part(TaskLoss() + 0.1 * TaskLoss())
    ("Below('eval_loss', 3.2)", 'TaskLoss() + 0.1 * TaskLoss()')
    >>> part([print, 5].append), part(print), part(Below)
    ('append', 'print', 'Below')
    """
    names = {entry.name for entry in fields(value)} if is_dataclass(value) else set()
    if names == {"losses"}:  # a sum
        return " + ".join(part(loss) for loss in value.losses)
    if names == {"weight", "loss"}:  # a scaled loss
        inner = part(value.loss)
        weight = getattr(value.weight, "value", None)
        weight = f"{weight:g}" if weight is not None else part(value.weight)
        return f"{weight} * ({inner})" if " + " in inner else f"{weight} * {inner}"
    if is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}({', '.join(_arguments(value))})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {part(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(part(item) for item in value) + "]"
    if isinstance(value, str | int | float | bool) or value is None:
        return repr(value)
    if isinstance(name := getattr(value, "__name__", None), str):
        return name
    return type(value).__name__


def parts(values: Sequence[Any]) -> str:
    """Write several parts, separated by commas."""
    return ", ".join(part(value) for value in values)


def dataset_label(dataset: Any) -> str:
    """Return the name of a dataset."""
    if isinstance(dataset, str):
        return dataset
    named = getattr(getattr(dataset, "info", None), "dataset_name", None)
    return str(named or type(dataset).__name__)


def examples_label(dataset: Any) -> str:
    """Write how many examples a dataset holds.

    >>> examples_label([0] * 1200), examples_label(iter([]))
    ('1,200 examples', 'a stream')
    """
    return f"{len(dataset):,} examples" if isinstance(dataset, Sized) else "a stream"


def shorten(text: str, limit: int) -> str:
    """Shorten text to at most ``limit`` characters, and mark the cut.

    >>> shorten("ternary-features", 10)
    'ternary...'
    """
    return text if len(text) <= limit else text[: max(limit - 3, 1)] + "..."


def shorten_middle(text: str, limit: int) -> str:
    """Shorten text to at most ``limit`` characters in its middle, because names often differ at their ends.

    >>> shorten_middle("held-out-code-python", 15)
    'held-o...python'
    """
    side = (limit - 3) // 2
    return text if len(text) <= limit else f"{text[: limit - 3 - side]}...{text[-side:]}"


def _arguments(value: Any) -> list[str]:
    shown, positional = [], True
    for entry in fields(value):
        if not entry.init or not entry.repr:
            continue
        current = getattr(value, entry.name)
        default = entry.default if entry.default is not MISSING else None
        if entry.default_factory is not MISSING:
            default = entry.default_factory()
        has_default = entry.default is not MISSING or entry.default_factory is not MISSING
        if has_default and _same(current, default):
            positional = False
            continue
        named = not positional or entry.kw_only or has_default
        text = repr(str(current)) if type(current).__name__ == "Duration" else part(current)
        shown.append(f"{entry.name}={text}" if named else text)
    return shown


def _same(left: Any, right: Any) -> bool:
    try:
        return bool(left == right)
    except Exception:  # arrays compare elementwise, and what cannot be compared is not the default
        return False


def _trim(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
