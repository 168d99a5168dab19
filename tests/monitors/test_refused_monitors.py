"""Monitors that cannot work in a run: the error comes before the first step, and says how to mend it."""

from __future__ import annotations

import pytest
import torch

from hf_stages import Stage
from hf_stages.monitors import (
    AttentionEntropy,
    GradientNorm,
    LossBySource,
    LossShares,
    QuantizedWeights,
    SampledDepth,
    TokenCorrelation,
    UpdateRatio,
)
from tests.support import tiny
from tests.support.runs import staged

ONE = {"input_ids": torch.ones(2, 1, dtype=torch.long), "attention_mask": torch.ones(2, 1, dtype=torch.long)}
PADDED = {
    "input_ids": torch.ones(2, 9, dtype=torch.long),
    "attention_mask": torch.tensor([[1] + [0] * 8, [0] * 9]),
}
REFUSED = {
    "unknown layer": (TokenCorrelation(layers=(1, 7)), "layers: the model has 2 blocks, counted from 1; got 7"),
    "layer zero": (AttentionEntropy(layers=(0,)), "layers: the model has 2 blocks, counted from 1; got 0"),
    "one token": (TokenCorrelation(probe=ONE), r"its probe has 1 token\(s\) in its longest row, and two are needed"),
    "padding": (AttentionEntropy(probe=PADDED), r"its probe has 1 token\(s\) in its longest row"),
    "no rows": (TokenCorrelation(probe=[]), "the probe has no rows; give probe="),
    "no dataset": (TokenCorrelation(probe=3), "the probe cannot take rows of a int"),
    "no quantized layers": (QuantizedWeights(), "the model has no quantized layers; leave it out, or put Ternarize"),
    "no recurrent core": (SampledDepth(), "the model has no recurrent core; leave it out, or put MakeRecurrent"),
    "no depth": (TokenCorrelation(depth=4), "depth=4: the model has no recurrent core"),
    "one term": (LossShares(), "the stage's loss has fewer than two terms"),
    "one source": (LossBySource(), "the stage draws from fewer than two sources; leave it out, or train on a Mixture"),
    "no such stack": (TokenCorrelation(stack="decoder"), "it has one stack of blocks, got stack='decoder'"),
}


@pytest.mark.parametrize(("monitor", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_measured_is_refused_before_the_first_step(monitor, said, tmp_path):
    trainer = staged(tmp_path, [Stage("a", "2 steps", monitors=[monitor])])
    with pytest.raises(ValueError, match=f"stage 'a': monitors: {type(monitor).__name__}: .*{said}"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not [log for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("monitor", [TokenCorrelation, AttentionEntropy])
@pytest.mark.parametrize("layers", [9, "9", [True], [1.0], None])
def test_layers_that_are_no_list_of_numbers_are_refused(monitor, layers):
    with pytest.raises(ValueError, match=rf"{monitor.__name__}: layers: expected a list .* such as \[4, 8\], got"):
        monitor(layers=layers)
    assert monitor(layers=[1, 2]).layers == (1, 2)


def test_a_late_stages_monitor_fails_before_the_first_stage(tmp_path):
    stages = [Stage("a", "2 steps"), Stage("b", "2 steps", monitors=[TokenCorrelation(layers=(9,))])]
    with pytest.raises(ValueError, match="stage 'b': monitors: TokenCorrelation: layers: the model has 2 blocks"):
        staged(tmp_path, stages).train()
    assert not list(tmp_path.glob("01-a"))


def test_what_is_no_monitor_is_refused(tmp_path):
    with pytest.raises(ValueError, match="stage 'a': monitors: expected a monitor or a function of the view, got 3"):
        staged(tmp_path, [Stage("a", "2 steps", monitors=[3])]).train()


def test_several_stacks_ask_which(tmp_path):
    trainer = staged(tmp_path, [Stage("a", "2 steps", monitors=[TokenCorrelation()])], model=tiny.t5())
    with pytest.raises(ValueError, match=r"TokenCorrelation: .*it has 2 stacks of blocks; say which: stack="):
        trainer.train()


@pytest.mark.parametrize(
    "make",
    [
        lambda: TokenCorrelation(rows=0),
        lambda: TokenCorrelation(every=0),
        lambda: GradientNorm(every="daily"),
        lambda: UpdateRatio(sample=0),
        lambda: AttentionEntropy(rows=True),
        lambda: LossBySource(rows=-1),
        lambda: TokenCorrelation(depth=0),
    ],
)
def test_bad_arguments_are_refused_where_they_are_written(make):
    with pytest.raises(ValueError, match="expected"):
        make()
