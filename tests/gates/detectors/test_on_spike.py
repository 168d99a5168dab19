"""The gate that answers for single updates: when it skips, when it climbs, and what it refuses."""

from __future__ import annotations

import pytest
from transformers import TrainingArguments

from hf_stages import Stage, recipes
from hf_stages.core.ledger import Entry
from hf_stages.core.stage_context import StageContext
from hf_stages.gates import CutRate, EndStage, History, OnSpike, Rollback
from hf_stages.gates.judged import JudgedUpdate

SPIKE = JudgedUpdate(True, {"loss": 9.0, "grad_norm": 1.0}, {"loss": 4.0, "grad_norm": 2.0})
NAN = JudgedUpdate(True, {"loss": 3.0, "grad_norm": float("nan")}, {"loss": 4.0, "grad_norm": 2.0})
LADDER = [CutRate(0.5), Rollback(200, attempts=2), EndStage()]


def climb(gate: OnSpike, *steps: int, update: JudgedUpdate = SPIKE) -> list[tuple[int, str]]:
    """What the gate answers where the updates before these steps of the run were bad, one after the other."""
    entries: list[Entry] = []
    answers = []
    for step in steps:
        if update.was_skipped:
            entries.append(Entry(step, "", "skip", "", "OnSpike"))
        decision = gate(History(step=step, entries=tuple(entries), update=update))
        if decision is not None:
            answers.append((step, decision.action))
            entries += [Entry(step, "", decision.action, "", "OnSpike", decision.value)]
    return answers


def test_a_good_update_is_no_matter():
    good = JudgedUpdate(False, SPIKE.values, SPIKE.limits)
    assert OnSpike()(History(step=9, update=good)) is None
    assert OnSpike()(History(step=9)) is None


@pytest.mark.parametrize(
    ("skip", "steps", "answers"),
    [
        (3, range(100, 103), []),
        (3, range(100, 104), [(103, "cut_lr")]),
        (3, range(100, 108), [(103, "cut_lr"), (107, "rollback")]),
        (
            1,
            range(100, 112),
            [(101, "cut_lr"), (103, "rollback"), (105, "end"), (107, "end"), (109, "end"), (111, "end")],
        ),
        (0, [100, 101, 120], [(100, "cut_lr"), (101, "rollback"), (120, "end")]),
        (1, [100, 102, 104, 106], []),  # a good update lies between them
        (1, [100, 101, 120, 121], [(101, "cut_lr"), (121, "rollback")]),
        (1, [100, 101, 110, 140, 153, 154], [(101, "cut_lr"), (154, "cut_lr")]),  # single ones prolong nothing
        (1, [100, 101, 152, 153], [(101, "cut_lr"), (153, "cut_lr")]),
        (1, [100, 101, 152, 153, 154, 155], [(101, "cut_lr"), (153, "cut_lr"), (155, "rollback")]),
    ],
)
def test_more_than_so_many_bad_updates_in_a_row_take_the_next_action(skip, steps, answers):
    assert climb(OnSpike(skip=skip, then=LADDER), *steps) == answers


def test_attempts_of_a_rollback_count_over_the_stage_and_then_the_run_stops():
    gate = OnSpike(skip=0, then=Rollback(200, attempts=2))
    assert [action for _, action in climb(gate, 100, 101, 500, 501)] == ["rollback", "rollback", "stop", "stop"]


def test_what_was_not_skipped_counts_as_well():
    taken = JudgedUpdate(True, SPIKE.values, SPIKE.limits, was_skipped=False)
    assert climb(OnSpike(skip=0, then=LADDER), 100, update=taken) == [(100, "cut_lr")]


def test_without_a_ladder_a_spike_alerts_and_what_is_not_finite_stops():
    assert climb(OnSpike(skip=2), 100, 101, 102) == [(102, "alert")]
    assert climb(OnSpike(skip=2), 100, 101, 102, update=NAN) == [(102, "stop")]


def test_the_reason_has_the_numbers_and_what_to_try():
    taken = JudgedUpdate(True, SPIKE.values, SPIKE.limits, was_skipped=False)
    reason = OnSpike(skip=0)(History(step=5, update=taken)).reason
    assert reason.startswith("loss 9 is above 4; to try: give it a ladder")
    skipped = (Entry(5, "", "skip", "", "OnSpike"),)
    assert "grad_norm is nan" in OnSpike(skip=0, then=LADDER)(History(step=5, entries=skipped, update=NAN)).reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": -1}, "OnSpike: skip: expected at least 0, got -1"),
        ({"window": 1}, "OnSpike: window: expected at least 2, got 1"),
        ({"sigma": 0}, "OnSpike: sigma: expected a number above 0, got 0"),
        ({"sigma": float("inf")}, "OnSpike: sigma: expected a finite number, got inf"),
        ({"watch": ["eval_loss"]}, "OnSpike: watch: expected loss, grad_norm or both, got 'eval_loss'"),
        ({"watch": []}, "OnSpike: watch: expected loss, grad_norm or both, got nothing"),
        ({"then": "CutRate"}, "then: expected actions"),
    ],
)
def test_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        OnSpike(**options)


@pytest.mark.parametrize(
    ("changes", "gates", "message"),
    [
        ({"optim": "galore_adamw_layerwise"}, [OnSpike()], "steps during the backward pass"),
        ({}, [OnSpike(), OnSpike(skip=1)], "a stage takes one of them"),
    ],
)
def test_refuses_a_stage_where_no_update_can_be_left_out(tmp_path, changes, gates, message):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    for name, value in changes.items():
        setattr(args, name, value)
    with pytest.raises(ValueError, match=message):
        gates[0].check_stage(StageContext(Stage("a", "9 steps", gates=gates), args))


def test_a_recipe_holds_it():
    text = """
stages:
  - name: a
    until: 900 steps
    gates:
      - {use: OnSpike, skip: 2, watch: loss, then: [CutRate, {use: Rollback, steps: 100, skip_data: false}]}
"""
    gate = OnSpike(skip=2, watch=("loss",), then=[CutRate(), Rollback(100, skip_data=False)])
    recipe = recipes.loads(text)
    assert recipe.stages[0].gates == (gate,)
    assert recipes.loads(recipes.dump(recipe)).stages[0].gates == (gate,)
