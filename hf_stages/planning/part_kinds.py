"""Checks that a stage's gates and transforms are subclasses of ours, which say of themselves what a plan asks them."""

from __future__ import annotations

from hf_stages.core.stage import Stage
from hf_stages.gates.base import Gate
from hf_stages.transforms.base import Transform

_KINDS = (("gates", "gate", Gate), ("transforms", "transform", Transform))


def check_part_kinds(stage: Stage) -> None:
    """Refuse what only looks like a gate or a transform.

    >>> check_part_kinds(Stage("code", "10 steps", gates=[len]))
    Traceback (most recent call last):
        ...
    ValueError: stage 'code': gates[0]: expected a gate, a subclass of hf_stages.gates.Gate, got <built-in function len>
    """
    for key, noun, kind in _KINDS:
        for index, part in enumerate(getattr(stage, key)):
            if not isinstance(part, kind):
                raise ValueError(
                    f"stage {stage.name!r}: {key}[{index}]: expected a {noun}, a subclass of hf_stages.{key}."
                    f"{kind.__name__}, got {part!r}"
                )
