"""Keep a trainer's own counters and metrics as they are over a call that is no step of its training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MOST = 10_000
"""How many entries notes have at most. What has more is taken for data."""


@contextmanager
def preserve_trainer_notes(trainer: Any) -> Iterator[None]:
    """Restore the trainer's notes after the block: numbers, and lists and mappings of numbers.

    Trainers count tokens and collect metrics in ``compute_loss``.
    """
    known = set(vars(trainer))
    held = {name: copy.deepcopy(value) for name, value in vars(trainer).items() if _is_note(value)}
    try:
        yield
    finally:
        mine = vars(trainer)
        for name in [name for name in mine if name not in known and _is_note(mine[name])]:
            del mine[name]
        mine.update({name: value for name, value in held.items() if name not in mine or mine[name] != value})


def _is_note(value: Any, depth: int = 0) -> bool:
    if value is None or isinstance(value, bool | int | float | str):
        return True
    if depth > 3 or not isinstance(value, dict | list | tuple | set) or len(value) > _MOST:  # what can be copied
        return False
    entries = [*value, *value.values()] if isinstance(value, dict) else value
    return all(_is_note(entry, depth + 1) for entry in entries)
