"""Gates that read what nobody logs are refused before the first step, and the monitor that logs it is named."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from hf_stages import MakeRecurrent, Stage
from hf_stages.data import AtDepths
from hf_stages.gates import Below, DeadRecurrence, Divergence, Overthinking, StalledLoader, TokenCollapse
from hf_stages.monitors import Monitor, Throughput, TokenCorrelation
from tests.support import tiny
from tests.support.runs import staged

EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}


def _plan(tmp_path, gates, *, monitors=(), args=None, **options):
    return staged(tmp_path, [Stage("a", "4 steps", gates=gates, monitors=monitors)], args=args, **options).plan()


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (
            TokenCollapse(),
            r"gates\[0\] TokenCollapse: it reads token_correlation, .* add monitors=\[.*TokenCorrelation",
        ),
        (TokenCollapse("token_correlation_layer_1"), r"token_correlation_layer_1, .*TokenCorrelation\(\)"),
        (StalledLoader(), r"it reads data_wait, which no monitor of this stage logs; add monitors=\[.*Throughput\(\)"),
        (Below("token_correlation", 0.5), r"it reads token_correlation, which no monitor"),
    ],
)
def test_the_monitor_that_is_missing_is_named(gate, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        _plan(tmp_path, [gate])


class Own(Monitor):
    def __call__(self, view):
        return {"token_correlation": 0.5, "mine": 1.0}


@dataclass(frozen=True)
class OwnNames(Own):
    logs = ("mine",)


def test_with_the_monitor_it_is_planned(tmp_path):
    assert _plan(tmp_path, [TokenCollapse()], monitors=[TokenCorrelation()])
    assert _plan(tmp_path, [StalledLoader()], monitors=[Throughput()])


def test_a_monitor_of_ones_own_may_log_it_unless_it_says_what_it_logs(tmp_path):
    assert _plan(tmp_path, [TokenCollapse()], monitors=[Own()])
    with pytest.raises(ValueError, match="which no monitor of this stage logs"):
        _plan(tmp_path, [TokenCollapse()], monitors=[OwnNames()])


def test_names_that_no_monitor_of_ours_logs_are_left_alone(tmp_path):
    assert _plan(tmp_path, [Below("my_metric", 0.5), Divergence()])


def test_without_a_training_log_there_is_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match='reads loss from the training log, but logging_strategy is "no"'):
        _plan(tmp_path, [Divergence()], args={"logging_strategy": "no"})


@pytest.mark.parametrize("gate", [DeadRecurrence(), Overthinking()])
def test_comparing_depths_needs_evaluations_at_several(gate, tmp_path):
    data = tiny.lm_data()
    with pytest.raises(ValueError, match="it compares depths, but the evaluation set is not measured at several"):
        _plan(tmp_path, [gate], args=EVALUATED, eval_dataset=data)
    with pytest.raises(ValueError, match='it reads evaluations, but eval_strategy is "no"'):
        _plan(tmp_path, [gate], eval_dataset=data)


def test_the_sets_that_are_measured_at_depths_are_named(tmp_path):
    sets = {"prose": AtDepths(tiny.lm_data(), depths=(1, 2)), "code": tiny.lm_data()}
    model = tiny.llama()
    stages = [Stage("a", "4 steps", gates=[Overthinking()], transforms=[MakeRecurrent(1, 1, 0, mean_depth=2)])]
    with pytest.raises(ValueError, match=r"or of=\.\.\. to read one of .*eval_prose_loss"):
        staged(tmp_path, stages, args=EVALUATED, eval_dataset=sets, model=model).plan()
