"""Actions: what they decide, what they refuse, how a recipe holds them."""

from __future__ import annotations

import pytest

from hf_stages.core.parts import part_from_dict, part_to_dict
from hf_stages.core.registry import RecipeError
from hf_stages.gates import CutRate, Decision, EndStage, Rollback, StopRun


@pytest.mark.parametrize(
    ("action", "decision"),
    [
        (CutRate(0.1), Decision("cut_lr", "why; the learning rate is multiplied by 0.1", 0.1)),
        (
            Rollback(300, skip_data=False),
            Decision("rollback", "why; the learning rate is multiplied by 0.5", 0.5, steps_back=300),
        ),
        (Rollback(factor=1), Decision("rollback", "why", 1, steps_back=200, skip_data=True)),
        (EndStage(), Decision("end", "why; the stage ends here")),
        (StopRun(), Decision("stop", "why; the run stops here")),
    ],
)
def test_an_action_gives_its_decision_with_the_finding_as_reason(action, decision):
    assert action("why") == decision


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CutRate(1.0), r"CutRate: factor: expected a number between 0 and 1, got 1.0"),
        (lambda: CutRate(float("nan")), "CutRate: factor"),
        (lambda: Rollback(0), "Rollback: steps: expected a whole number of at least 1, got 0"),
        (lambda: Rollback(2.5), "Rollback: steps"),
        (lambda: Rollback(attempts=True), "Rollback: attempts"),
        (lambda: Rollback(factor=0), "Rollback: factor"),
        (lambda: Rollback(skip_data="no"), "Rollback: skip_data: expected true or false"),
    ],
)
def test_what_would_do_nothing_or_harm_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("action", [CutRate(0.1), Rollback(300, skip_data=False), EndStage(), StopRun()])
def test_a_recipe_reads_back_what_it_wrote(action):
    assert part_from_dict(part_to_dict(action, "then"), "then") == action


def test_an_action_that_is_not_known_is_named():
    with pytest.raises(
        RecipeError, match=r"unknown part 'CutRates' in hf_stages.gates.actions; did you mean 'CutRate'"
    ):
        part_from_dict("CutRates", "then")
