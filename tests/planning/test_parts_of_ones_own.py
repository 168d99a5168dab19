"""Parts of someone's own: what a field says of them, names that clash with nothing, and what is refused early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from hf_stages import Stage
from hf_stages.core.curves import Linear
from hf_stages.core.part import own_data
from hf_stages.core.parts import write_value
from hf_stages.gates import Decision, Gate
from hf_stages.transforms import Transform
from tests.support import tiny
from tests.support.runs import staged, summary

EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}


@dataclass(frozen=True)
class Acts(Gate):
    """Decides once, and says by a field that it may."""

    action: str
    most: float = 0.5
    source: Any = None
    on = "step"

    def __call__(self, history):
        acted = [entry for entry in history.entries if entry.kind == self.action]
        return Decision(self.action, "now", 0.5) if history.step == 2 and not acted else None


@dataclass(frozen=True)
class Unannounced(Gate):
    answer: str
    on = "step"

    def __call__(self, history):
        return Decision(self.answer, "now", 0.5)


class Quiet(Gate):
    def __call__(self, history):
        return None


class Silent(Quiet):
    on = "evaluation"
    of: Any = None

    def __init__(self, of=None):
        self.of = of


class Same(Transform):
    structural = False

    def __call__(self, model):
        return model


@dataclass(frozen=True)
class Grows(Same):
    strength: Any = Linear(0.0, 1.0)


def test_a_field_that_says_replay_replays(tmp_path):
    gate = Acts("replay", most=0.25, source="x")
    assert (gate.replays, gate.keeps, gate.most_replayed, gate.replay_source) == (True, False, 0.25, "x")
    later = Stage("b", "4 steps", train_dataset=tiny.lm_data(16, seed=5), gates=[Acts("replay")])
    staged(tmp_path, [Stage("a", "2 steps"), later]).train()
    drawn = summary(tmp_path, "02-b")["data"]["over_time"]
    assert drawn[0]["share"]["a"] == 0.0
    assert drawn[-1]["share"]["a"] == 0.5


def test_a_field_that_says_rollback_goes_back(tmp_path):
    staged(tmp_path, [Stage("a", "3 steps", gates=[Acts("rollback")])]).train()
    reasons = [entry["reason"] for entry in summary(tmp_path, "01-a")["ledger"] if entry["kind"] == "rollback"]
    assert reasons == ["now; went back to the start of the stage"]


def test_a_field_without_a_default_may_have_the_name_of_a_member():
    @dataclass(frozen=True)
    class Named(Quiet):
        keeps: int
        replays: bool = True

    assert (Named(3).keeps, Named(3).replays, Quiet().keeps, Quiet().replays) == (3, True, False, False)


@pytest.mark.parametrize(("answer", "member"), [("rollback", "keeps"), ("replay", "replays")])
def test_an_answer_that_no_gate_announced_is_refused(tmp_path, answer, member):
    trainer = staged(tmp_path, [Stage("a", "3 steps", gates=[Unannounced(answer)])])
    with pytest.raises(
        ValueError, match=f"stage 'a': gates: Unannounced: it answered '{answer}'.* set {member} = True"
    ):
        trainer.train()


class LooksLikeAGate:
    on, reads_clock = "log", False

    def __call__(self, history):
        return None


class LooksLikeATransform:
    structural = keeps_function = False

    def __call__(self, model):
        return model


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"gates": [Quiet(), LooksLikeAGate()]},
            r"gates\[1\]: .*subclass of hf_stages.gates.Gate, got .*LooksLikeAGate",
        ),
        (
            {"transforms": [LooksLikeATransform()]},
            r"transforms\[0\]: .*subclass of hf_stages.transforms.Transform, got .*LooksLikeATransform",
        ),
    ],
    ids=["gate", "transform"],
)
def test_what_only_looks_like_a_part_is_refused_before_a_step(tmp_path, parts, words):
    with pytest.raises(ValueError, match=f"stage 'a': {words}"):
        staged(tmp_path, [Stage("a", "2 steps", **parts)]).plan()


class ReadsTwo(Quiet):
    metric = ("loss", "eval_loss")


class Counts(Quiet):
    def metric(self, logs):
        return len(logs)


class HasItsOwnCheck(Quiet):
    def check(self, values):
        return len(values) >= 2


@dataclass(frozen=True)
class HasItsOwnData(Quiet):
    n: int = 2

    def to_data(self):
        return {"n": self.n}


def test_names_of_ones_own_clash_with_nothing(tmp_path):
    gates = [ReadsTwo(), Counts(), HasItsOwnCheck(), HasItsOwnData()]
    staged(tmp_path, [Stage("a", "2 steps", gates=gates)]).plan()
    assert own_data(HasItsOwnData(), write_value) == (False, None)


def test_a_strength_that_grows_refuses_the_best_checkpoint(tmp_path):
    args = {**EVALUATED, "load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 2}
    trainer = staged(tmp_path, [Stage("a", "4 steps", transforms=[Grows()])], args=args, eval_dataset=tiny.lm_data(4))
    with pytest.raises(ValueError, match=r"stage 'a': load_best_model_at_end: .* before Grows reached full strength"):
        trainer.plan()
    assert not Grows(1.0).varies


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (["nope"], "of: no evaluation set is called 'nope'; there are x"),
        ("nope", "of: no evaluation set is called 'nope'; there are x"),
        (None, r"of: no evaluation set \(x\) is named as an earlier stage"),
    ],
)
def test_a_gate_that_watches_unknown_sets_is_refused(tmp_path, of, words):
    stages = [Stage("a", "4 steps", gates=[Silent(of)])]
    trainer = staged(tmp_path, stages, args=EVALUATED, eval_dataset={"x": tiny.lm_data(4)})
    with pytest.raises(ValueError, match=rf"stage 'a': gates\[0\] Silent: {words}"):
        trainer.plan()
