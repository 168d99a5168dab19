"""Errors that say where: the place is put in front of the text of an error that comes from further down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def place_errors(where: str, errors: tuple[type[Exception], ...] = (ValueError, OSError)) -> Iterator[None]:
    """Turn ``errors`` raised inside into a ValueError whose text begins with ``where``.

    >>> with place_errors("stage 'code': loss"):
    ...     raise ValueError("temperature: expected a positive number, got -1")
    Traceback (most recent call last):
    ValueError: stage 'code': loss: temperature: expected a positive number, got -1
    """
    try:
        yield
    except errors as error:
        raise ValueError(f"{where}: {error}") from error
