"""Writes tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable


def row(texts: Iterable[str]) -> str:
    """Write a row of a table.

    >>> row(["a|b", "c"])
    '| a\\\\|b | c |'
    """
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Write the lines of a table."""
    heads = list(heads)
    return [row(heads), row(["---"] * len(heads)), *map(row, rows)]
