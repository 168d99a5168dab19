"""The arguments that ``help(StagedTrainer)`` and editors show: the trainer's own, and those for stages."""

from __future__ import annotations

import inspect
from typing import Any

_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def signature_of(cls: type, mixin: type) -> inspect.Signature:
    """Find what ``cls`` takes. The mixin itself hands on whatever the trainer below it takes."""
    own = [base for base in cls.__mro__ if "__init__" in vars(base)]
    if own[0] is not mixin:
        return inspect.Signature(_parameters_of(own[0])[1:])
    below, added = _parameters_of(own[1])[1:], [p for p in _parameters_of(mixin)[1:] if p.kind not in _OPEN]
    theirs = [p for p in below if p.name not in {one.name for one in added}]
    last = [p for p in theirs if p.kind is inspect.Parameter.VAR_KEYWORD]
    return inspect.Signature([*(p for p in theirs if p not in last), *added, *last])


def _parameters_of(cls: type) -> list[inspect.Parameter]:
    init: Any = vars(cls)["__init__"]
    return list(inspect.signature(init).parameters.values())
