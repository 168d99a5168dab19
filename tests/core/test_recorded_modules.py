"""What an earlier version wrote keeps its names, wherever the modules stand now."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from hf_stages.core.curves import Linear
from hf_stages.core.fingerprint import fingerprint
from hf_stages.core.parts import part_from_dict, part_to_dict
from hf_stages.core.recorded_modules import module_recorded_as, recorded_module
from hf_stages.core.registry import PLACES, list_parts
from hf_stages.data import Mixture
from hf_stages.data.drawing.replayed import Replayed
from hf_stages.gates import Decision, Gate

MODULES = sorted({module for kind in PLACES for module, _ in list_parts(kind)})


@pytest.mark.parametrize("module", MODULES)
def test_a_recorded_name_leads_back_to_the_module(module):
    assert module_recorded_as(recorded_module(module)) == module


@pytest.mark.parametrize(
    ("module", "recorded"),
    [
        ("hf_stages.data.drawing.replayed", "hf_stages.data._replayed"),
        ("hf_stages.data.curricula.base", "hf_stages.data._curriculum"),
        ("hf_stages.gates.base", "hf_stages.gates._gate"),
        ("hf_stages.gates.plateau", "hf_stages.gates.plateau"),
        ("tests.core", "tests.core"),
    ],
)
def test_modules_are_recorded_as_they_first_were(module, recorded):
    assert recorded_module(module) == recorded
    assert module_recorded_as(recorded) == module


def test_a_class_of_ours_under_another_key_is_written_as_before_and_read_back():
    written = part_to_dict(Linear(1, 0), "gates")
    assert part_from_dict({"use": "hf_stages.curves:Linear", "start": 1.0, "end": 0.0}, "gates") == Linear(1, 0)
    assert written["use"] == "Linear"
    assert part_to_dict(Replayed([1], None, "a"), "train_dataset")["use"] == "hf_stages.data._replayed:Replayed"


@pytest.mark.parametrize("use", ["hf_stages.data.mixture:Mixture", "hf_stages.data.curricula.mixture:Mixture"])
def test_a_part_is_found_by_the_module_of_before_and_of_now(use):
    assert part_from_dict({"use": use, "weights": {"a": 1.0}}, "train_dataset") == Mixture({"a": 1.0})


@dataclass(frozen=True)
class Holds(Gate):
    answer: Decision = Decision("alert", "why")


def test_a_part_of_ones_own_that_holds_ours_keeps_its_fingerprint():
    assert fingerprint(Decision) == "hf_stages.gates._gate.Decision"
    assert fingerprint(Holds()) == fingerprint(Holds(Decision("alert", "why")))
