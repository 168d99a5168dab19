"""A gate that no run would ask is refused in the plan."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from hf_stages import Stage
from hf_stages.gates import Decision, Gate, OnSpike
from tests.support.runs import staged


@dataclass(frozen=True)
class Mine(Gate):
    on = "update"

    def __call__(self, history):
        return Decision("alert", "hello")


@dataclass(frozen=True)
class Misspelt(Mine):
    on = "logs"


@dataclass(frozen=True)
class MySpikes(OnSpike):
    pass


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (Mine(), r"stage 'a': gates\[0\] Mine: on: 'update' is for OnSpike and its subclasses.*expected 'step'"),
        (Misspelt(), r"stage 'a': gates\[0\] Misspelt: on: expected one of step, update, log.*got 'logs'"),
    ],
)
def test_a_gate_that_nobody_would_ask_is_refused(tmp_path, gate, message):
    with pytest.raises(ValueError, match=message):
        staged(tmp_path, [Stage("a", "2 steps", gates=[gate])]).plan()


def test_a_subclass_of_on_spike_judges_updates(tmp_path):
    staged(tmp_path, [Stage("a", "2 steps", gates=[MySpikes()])]).plan()
