"""Counters that the trainer below keeps over updates and Trainer does not save (TRL's tokens and metrics).

A resumed run goes on with them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


def counters_of(trainer: Any) -> dict[str, Any]:
    """Copy the counters, as JSON takes them."""
    return {name: copy.deepcopy(vars(trainer)[name]) for name in trainer.counter_names if name in vars(trainer)}


def restore_counters(trainer: Any, state: Mapping[str, Any]) -> None:
    """Set the counters to what ``counters_of`` gave."""
    for name, value in state.items():
        held = vars(trainer).get(name)
        if isinstance(held, dict):
            _fill(held, value)
        elif held is not None:
            setattr(trainer, name, copy.deepcopy(value))


def reset_counters(trainer: Any) -> None:
    """Count from nothing, at the start of a run: an earlier run of the same trainer does not count."""
    for name in trainer.counter_names:
        held = vars(trainer).get(name)
        if isinstance(held, dict):
            _fill(held, {})
        elif held is not None:
            setattr(trainer, name, type(held)())


def _fill(held: dict[str, Any], state: Mapping[str, Any]) -> None:
    """Set the values in the dicts that are there: a defaultdict stays one."""
    for key in [*held.keys(), *state.keys()]:
        if isinstance(held.get(key), dict):
            _fill(held[key], state.get(key, {}))
        elif key in state:
            held[key] = copy.deepcopy(state[key])
        else:
            held.pop(key, None)
