"""Writes the table of ``hf-stages bench`` as a section of a model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_stages.reports.markdown import row
from hf_stages.reports.tables.bench_table import cells, head, notes

_BEGIN, _END = "<!-- hf_stages: size and speed -->", "<!-- hf_stages: end of size and speed -->"
_NEW = "---\nlibrary_name: transformers\ntags:\n- hf_stages\n---\n\n# {name}\n"


def card_with(found: Mapping[str, Any], card: str | None) -> str:
    """Return the card with the section: in place of an earlier one, or at its end. Without a card, make a new one.

    Text outside the two comments is not changed.
    """
    card = _NEW.format(name=found["folder"].replace("\\", "/").rstrip("/").rpartition("/")[2]) if card is None else card
    begin, end = card.find(_BEGIN), card.find(_END)
    if -1 < begin < end:
        return card[:begin] + _section(found) + card[end + len(_END) :]
    return card.rstrip("\n") + "\n\n" + _section(found) + "\n"


def _section(found: Mapping[str, Any]) -> str:
    heads, rows = cells(found)
    _, machine = head(found)
    table = [row(["model", *heads[1:]]), row(["---", *["---:"] * (len(heads) - 1)]), *map(row, rows)]
    words = [f"On {machine}.", *notes(found)]
    return "\n".join([_BEGIN, "## Size and speed", "", *table, "", "\n".join(words), _END])
