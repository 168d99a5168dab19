"""Errors that say where: the place is put in front of the text of an error that comes from further down."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def place_errors(
    where: str,
    *kinds: type[Exception],
    drop: str = "",
    keys: Sequence[str] = (),
    keep: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Turn errors raised inside into a ValueError whose text begins with the place ``where``.

    Args:
        where: Such as ``stage 'code': loss``; nothing is put in front where it is empty.
        kinds: The errors meant; ValueErrors where none are named.
        drop: Left out where the text begins with it, so that a name is not said twice.
        keys: Keys inside the place; a text that begins with one follows after a dot.
        keep: Errors that are raised again as what they are, with the place.

    >>> with place_errors("stage 'code': loss"):
    ...     raise ValueError("temperature: expected a positive number, got -1")
    Traceback (most recent call last):
    ValueError: stage 'code': loss: temperature: expected a positive number, got -1
    >>> with place_errors("model", keys=["config"]):
    ...     raise ValueError("config.hidden_size: expected a number, got 'big'")
    Traceback (most recent call last):
    ValueError: model.config.hidden_size: expected a number, got 'big'
    """
    meant = kinds or (ValueError,)
    try:
        yield
    except meant as error:
        text = str(error).removeprefix(drop)
        between = "." if any(re.match(rf"{key}\.\w+: ", text) for key in keys) else ": "
        kind = next((kept for kept in keep if isinstance(error, kept)), ValueError)
        raise kind(f"{where}{between}{text}" if where else text) from error
