"""What the trainer below counts over updates and Trainer does not save (TRL's tokens and metrics): a resumed run goes on with it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


def remembered(trainer: Any) -> dict[str, Any]:
    """As JSON takes it."""
    return {name: copy.deepcopy(vars(trainer)[name]) for name in trainer.remembers if name in vars(trainer)}


def remember(trainer: Any, state: Mapping[str, Any]) -> None:
    for name, value in state.items():
        held = vars(trainer).get(name)
        if isinstance(held, dict):
            _fill(held, value)
        elif held is not None:
            setattr(trainer, name, copy.deepcopy(value))


def forget(trainer: Any) -> None:
    """At the start of a run: an earlier one of the same trainer is not counted on."""
    for name in trainer.remembers:
        held = vars(trainer).get(name)
        if isinstance(held, dict):
            _fill(held, {})
        elif held is not None:
            setattr(trainer, name, type(held)())


def _fill(held: dict[str, Any], state: Mapping[str, Any]) -> None:
    """The values, into the dicts that are there: a defaultdict stays one."""
    for key in [*held.keys(), *state.keys()]:
        if isinstance(held.get(key), dict):
            _fill(held[key], state.get(key, {}))
        elif key in state:
            held[key] = copy.deepcopy(state[key])
        else:
            held.pop(key, None)
