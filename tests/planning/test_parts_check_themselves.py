"""Parts of someone's own say what they are and refuse stages that do not suit them, with no change in hf_stages."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from hf_stages import Stage
from hf_stages.gates import Decision, Gate
from hf_stages.planning.replay_sources import replay_gate
from hf_stages.schedules import Schedule, Span
from hf_stages.transforms import Transform
from tests.support.plans import plan_of
from tests.support.runs import staged


@dataclass(frozen=True)
class OnlyOnOneDomain(Gate):
    def check_stage(self, context):
        if len(context.domains) != 1:
            raise ValueError(f"expected one evaluation set, got {', '.join(context.domains)}")

    def __call__(self, history):
        return None


@dataclass(frozen=True)
class NeverLast(Transform):
    def check_stage(self, context):
        if context.stage.transforms[-1] is self:
            raise ValueError("transforms: NeverLast: put it before another one")

    def __call__(self, model):
        return model


def test_a_gate_checks_its_stage_before_the_first_step(tmp_path):
    stages = [Stage("a", "2 steps", gates=[OnlyOnOneDomain()])]
    trainer = staged(tmp_path, stages, eval_dataset={"prose": [{"input_ids": [1]}], "code": [{"input_ids": [2]}]})
    with pytest.raises(ValueError, match=r"stage 'a': gates\[0\] OnlyOnOneDomain: expected one .* got prose, code"):
        trainer.plan()


def test_a_transform_checks_its_stage_before_the_first_step(tmp_path):
    trainer = staged(tmp_path, [Stage("a", "2 steps", transforms=[NeverLast()])])
    with pytest.raises(ValueError, match="stage 'a': transforms: NeverLast: put it before another one"):
        trainer.plan()


def test_a_schedule_checks_its_span():
    @dataclass(frozen=True)
    class Even(Schedule):
        def span(self, defaults, *, total, parent_lr):
            return Span(1e-3, 0, total, lambda s: 1.0)

        def check(self, span, steps):
            if steps % 2:
                raise ValueError(f"expected an even number of steps, got {steps}")

    assert plan_of(Stage("a", "4 steps", schedule=Even())).peak_lr("a") == 1e-3
    with pytest.raises(ValueError, match="stage 'a': schedule: expected an even number of steps, got 3"):
        plan_of(Stage("a", "3 steps", schedule=Even()))


def test_what_is_no_schedule_is_refused():
    with pytest.raises(ValueError, match=r"stage 'a': schedule: expected a schedule such as Fresh.* got 3"):
        plan_of(Stage("a", "4 steps", schedule=3))


def test_a_gate_says_itself_that_it_replays():
    @dataclass(frozen=True)
    class Always(Gate):
        replays = True
        most_replayed = 0.25
        replay_source = "prose"

        def __call__(self, history):
            return Decision("replay", "as ever", 0.25)

    gate = Always()
    assert replay_gate(Stage("a", "4 steps", gates=[gate])) is gate
    assert replay_gate(Stage("a", "4 steps", gates=[OnlyOnOneDomain()])) is None
