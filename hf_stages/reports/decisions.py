"""Tells in plain words what a run's gates decided: alerts, skipped updates, cut rates, ways back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

WORDS = {
    "alert": "alert",
    "skip": "update skipped",
    "cut_lr": "rate cut",
    "rollback": "went back",
    "replay": "replay",
    "end": "stage ended",
    "stop": "run stopped",
    "incident": "rows written down",
    "notice": "notice",
}
"""What each kind of ledger entry is called; kinds that are not here only mark the course of the run."""
_PLAIN_ENDS = ("until", "callback", "")
"""Who ends a stage without a gate's decision."""


def decisions(ledger: Iterable[Mapping[str, Any]], kinds: Iterable[str] = tuple(WORDS)) -> list[tuple[int, str, str]]:
    """Return (step, stage, words) of a ledger's decisions. Updates that a gate skipped in a row are told together.

    >>> skips = [{"step": s, "stage": "a", "kind": "skip", "reason": f"loss {s}", "by": "OnSpike"} for s in (7, 8)]
    >>> decisions([*skips, {"step": 9, "stage": "a", "kind": "end", "reason": "9 steps done", "by": "until"}])
    [(7, 'a', '2 updates skipped, up to step 8: loss 8 [OnSpike]')]
    """
    kinds = set(kinds)
    shown = [entry for entry in ledger if entry["kind"] in kinds & WORDS.keys() and not _is_plain_end(entry)]
    found = []
    for (kind, stage, by), group in groupby(shown, lambda e: (e["kind"], e["stage"], e.get("by") or "")):
        entries = list(group)
        told = [entries] if kind == "skip" and len(entries) > 1 else [[entry] for entry in entries]
        found += [(some[0]["step"], stage, _words(some) + (f" [{by}]" if by else "")) for some in told]
    return found


def _is_plain_end(entry: Mapping[str, Any]) -> bool:
    return entry["kind"] == "end" and (entry.get("by") or "") in _PLAIN_ENDS


def _words(entries: Sequence[Mapping[str, Any]]) -> str:
    last = entries[-1]
    if len(entries) == 1:
        return f"{WORDS[last['kind']]}: {last['reason']}"
    return f"{len(entries)} updates skipped, up to step {last['step']}: {last['reason']}"
