"""When the gate replays, at which share, and which settings it refuses."""

from __future__ import annotations

import pytest

from hf_stages import recipes
from hf_stages.core.ledger import Entry, Ledger
from hf_stages.data import Mixture
from hf_stages.gates import Forgetting, History
from tests.gates.replaying import GATE, trainer


def test_one_gate_of_a_stage_replays(tmp_path):
    with pytest.raises(ValueError, match=r"gates: 2 of them replay"):
        trainer(tmp_path, gate=[Forgetting(**GATE), Forgetting(**{**GATE, "budget": 0.5})]).plan()


# ---- what it decides -----------------------------------------------------------------------------------------------


def decide(gate, *losses, entries=()):
    logs = [{"step": 10 * i, "eval_prose_loss": loss} for i, loss in enumerate(losses, start=1)]
    history = History(10 * len(losses), logs=logs, before={"eval_prose_loss": 2.0}, earlier=("prose",), entries=entries)
    found = gate(history)
    return None if found is None else (found.action, found.value)


def entry(step, kind="replay", value=0.1):
    return Entry(step, "code", kind, "", "Forgetting", value)


@pytest.mark.parametrize(
    ("losses", "entries", "answer"),
    [
        ([2.05], (), None),
        ([2.2], (), ("replay", 0.1)),
        ([2.2], (entry(10),), None),  # the evaluation that was acted on
        ([2.2, 2.2], (entry(10),), ("replay", 0.2)),
        ([2.2, 2.0, 2.2], (entry(10), entry(20, value=0.2)), ("replay", 0.3)),  # most
        ([2.2, 2.2], (entry(10, value=0.3),), ("alert", None)),
        ([2.2, 2.2, 2.2], (entry(10, value=0.3), entry(20, "alert", None)), None),
        ([2.2], (entry(10, "cut_lr", 0.5),), ("replay", 0.1)),  # another gate's cut is no share
    ],
)
def test_the_share_doubles_up_to_the_most(losses, entries, answer):
    assert decide(Forgetting("5%", action="replay", most=0.3), *losses, entries=entries) == answer


def test_another_gates_share_is_no_cut():
    assert decide(Forgetting("5%", action="cut_lr", floor=0.4), 2.2, entries=(entry(5, value=0.1),)) == ("cut_lr", 0.5)
    ledger = Ledger()
    ledger.note(5, "code", "replay", "", value=0.1)
    ledger.note(6, "code", "cut_lr", "", value=0.5)
    assert ledger.lr_factor(["code"], 7) == 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 0}, "share: expected numbers above 0"),
        ({"share": 0.6}, "share at most most; got share=0.6, most=0.5"),
        ({"most": 1}, "below 1"),
        ({"action": "end", "source": "prose"}, "source: it is what 'replay' draws from"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Forgetting(**{"action": "replay", **options})


def test_reads_and_writes_as_yaml():
    text = """
sources: {prose: {path: a}, code: {path: b}}
stages:
  - {name: prose, until: 1 steps, train_dataset: prose}
  - name: code
    until: 1 steps
    train_dataset: code
    gates:
      - {use: Forgetting, action: replay, share: 0.05, source: {use: Mixture, weights: {prose: 1}}}
"""
    read = recipes.loads(text)
    assert read["code"].gates[0] == Forgetting(action="replay", share=0.05, source=Mixture({"prose": 1}))
    assert recipes.loads(recipes.dump(read)) == read
    with pytest.raises(ValueError, match=r"gates.*no source is called 'proze'"):
        recipes.loads(text.replace("{prose: 1}", "{proze: 1}"))
    with pytest.raises(ValueError, match=r"gates.*no source is called 'proze'"):
        recipes.loads(text.replace("{use: Mixture, weights: {prose: 1}}", "proze"))
