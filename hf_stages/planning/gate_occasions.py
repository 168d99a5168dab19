"""Refuses gates that no run would ever ask."""

from __future__ import annotations

from typing import Any

from hf_stages.gates.detectors.on_spike import OnSpike

_OCCASIONS = ("step", "update", "log", "evaluation", "end")


def check_occasion(gate: Any) -> None:
    """Refuse a gate that says an occasion which there is not, or which is another's."""
    if gate.on == "update" and not isinstance(gate, OnSpike):
        raise ValueError(
            "on: 'update' is for OnSpike and its subclasses, which judge updates before they are made; expected 'step' "
            "(after each update), 'log', 'evaluation' or 'end'"
        )
    if gate.on not in _OCCASIONS:
        raise ValueError(f"on: expected one of {', '.join(_OCCASIONS)}, got {gate.on!r}")
