"""Runs with PEFT adapters: branches, best models, losses; and adapters that cannot be stored or put on a base."""

from __future__ import annotations

import pytest
import torch

from hf_stages import Stage
from hf_stages.losses import AttentionMSE, AttentionRelation, HiddenMSE, LogitKL, TaskLoss
from hf_stages.models.adapter_folders import check_adapter
from hf_stages.models.adapters import layout_of
from hf_stages.models.stage_models import load_stage
from hf_stages.transforms import AddLora, MergeLora
from tests.models.adapter_kinds import KINDS, MORE, TASK, Cut, Stop, adapted, logits, lora, stock, trainer_of
from tests.support import tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("quick_gc")


@pytest.mark.parametrize("name", ["prefix", "prefix-encoder", "dora"])
def test_the_best_model_is_loaded_at_the_end(name, tmp_path):
    args = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    model = adapted((KINDS | MORE)[name][0]())
    own = trainer_of(tmp_path, model, [Stage("a", "4 steps")], **args, **best)
    own.train()
    assert own.state.best_global_step < 4
    short = trainer_of(
        tmp_path / "short",
        adapted((KINDS | MORE)[name][0]()),
        [Stage("a", "4 steps")],
        [Stop(own.state.best_global_step)],
    )
    short.train()
    assert torch.equal(logits(own.model), logits(short.model))
    assert torch.equal(logits(load_stage(tmp_path / "01-a")[0]), logits(short.model))


def test_a_branch_and_a_later_run_start_with_the_prompts(tmp_path):
    still = {"args": {"learning_rate": 0.0}}
    stages = [Stage("a", "2 steps"), Stage("b", "2 steps"), Stage("c", "1 steps", parents="a", **still)]
    trainer_of(tmp_path, adapted(MORE["prefix-encoder"][0]()), stages).train()
    first = load_stage(tmp_path / "01-a")[0]
    wanted = logits(first)
    assert torch.equal(logits(load_stage(tmp_path / "03-c")[0]), wanted)
    trainer_of(tmp_path / "later", first, [Stage("d", "1 steps", **still)]).train()
    assert torch.equal(logits(load_stage(tmp_path / "later" / "01-d")[0]), wanted)


def test_a_branch_from_the_initial_model_does_not_initialize_pissa_again(tmp_path):
    stages = [Stage("a", "2 steps"), Stage("b", "1 steps", parents=[], args={"learning_rate": 0.0})]
    model = adapted(KINDS["pissa"][0]())
    wanted = logits(model)
    trainer_of(tmp_path, model, stages).train()
    assert torch.equal(logits(load_stage(tmp_path / "02-b")[0]), wanted)


def test_a_trained_adapter_is_not_put_on_a_fresh_base(tmp_path):
    """A checkpoint holds the adapter alone; the model of this trainer was trained, and what it began with is gone."""
    stages = [Stage("a", "4 steps", transforms=[AddLora(2, target_modules="q_proj")])]
    cut = Cut(3)
    own = trainer_of(tmp_path, tiny.llama(), stages, [cut], save_strategy="steps", save_steps=1)
    with pytest.raises(KeyboardInterrupt):
        own.train()
    own.remove_callback(cut)
    with pytest.raises(ValueError, match=r"checkpoint-2: a checkpoint with an adapter holds the adapter alone.*anew"):
        own.train(resume_from_checkpoint=True)
    again = trainer_of(tmp_path, tiny.llama(), stages, save_strategy="steps", save_steps=1)
    again.train(resume_from_checkpoint=True)
    whole = trainer_of(tmp_path / "whole", tiny.llama(), stages)
    whole.train()
    assert torch.equal(logits(again.model), logits(whole.model))


@pytest.mark.parametrize("other", ["decomposed", "another"])
def test_an_adapter_is_not_put_on_another_base(other, tmp_path):
    """A start that is drawn at random leaves another base each time; or the script names another model."""
    config = lora(init_lora_weights="pissa_niter_4" if other == "decomposed" else True)
    args = {"save_strategy": "steps", "save_steps": 1}

    def begin(changed):
        torch.manual_seed(7 if changed and other == "decomposed" else 1)
        model = tiny.llama(seed=7 if changed and other == "another" else 0)
        return trainer_of(tmp_path, peft.get_peft_model(model, config()), callbacks=[] if changed else [Cut(2)], **args)

    with pytest.raises(KeyboardInterrupt):
        begin(changed=False).train()
    with pytest.raises(
        ValueError, match=r"checkpoint-1: its adapter was trained on another base: .*set_seed before get_peft"
    ):
        begin(changed=True).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("name", ["prompt", "prefix-encoder"])
def test_prompt_tuning_under_fsdp_is_refused(name):
    model = adapted((KINDS | MORE)[name][0]())
    with pytest.raises(ValueError, match=r"stage 'a': P\w+_TUNING: expected DDP or one process"):
        check_adapter(model, "stage 'a'", sharded=True)
    check_adapter(adapted(lora()()), "stage 'a'", sharded=True)


def test_a_base_that_cannot_be_told_from_its_adapter_is_refused_at_once(tmp_path):
    model = adapted(peft.AdaptionPromptConfig(adapter_len=2, adapter_layers=1, task_type=TASK))
    with pytest.raises(
        ValueError, match=r"got ADAPTION_PROMPT: a AdaptedAttention takes the place of a part of Llama.*another kind"
    ):
        trainer_of(tmp_path, model)


def test_an_adapter_that_reads_the_input_is_stored_apart_from_its_base():
    model = adapted(lora(alora_invocation_tokens=[5])())
    check_adapter(model, "stage 'a'")
    assert "certain tokens of the input" in layout_of(model).apart


def test_a_base_with_one_weight_in_several_places_is_refused_at_once(tmp_path):
    model = adapted(lora(layer_replication=[[0, 2], [0, 2]])())
    with pytest.raises(
        ValueError, match=r"layers\.0\..* and .*layers\.2\..* are one weight of the base.*plain adapter"
    ):
        trainer_of(tmp_path, model)


@pytest.mark.parametrize(
    ("name", "loss", "message"),
    [
        ("prompt", LogitKL(), r"expected logits for 4 x 16 tokens, as the batch has, got 4 x 18.*prompt tuning"),
        (
            "prompt",
            HiddenMSE(),
            r"the batch has 4 rows of 16 tokens, but the model has states of 4 x 18.*prompt tuning",
        ),
        (
            "prompt",
            AttentionMSE(),
            "AttentionMSE: 18 tokens that look at 18 in the student, 16 that look at 16 in the teacher",
        ),
        (
            "prefix",
            AttentionMSE(),
            "AttentionMSE: 16 tokens that look at 18 in the student, 16 that look at 16 in the teacher",
        ),
        ("prefix", AttentionRelation(), "AttentionRelation: 16 tokens that look at 18 in the student.*prefix tuning"),
    ],
)
def test_losses_that_cannot_match_tokens_say_so_before_the_first_update(name, loss, message, tmp_path):
    stage = Stage("a", "2 steps", loss=TaskLoss() + loss, teacher=tiny.llama(seed=5))
    own = trainer_of(tmp_path, adapted(KINDS[name][0]()), [stage])
    with pytest.raises(ValueError, match=message):
        own.train()
    assert own.state.global_step == 0


@pytest.mark.parametrize("loss", [LogitKL(), HiddenMSE()])
def test_prefixes_learn_from_a_teacher(loss, tmp_path):
    stage = Stage("a", "2 steps", loss=loss, teacher=tiny.llama(seed=5))
    own = trainer_of(tmp_path, adapted(KINDS["prefix"][0]()), [stage])
    before = logits(own.model)
    own.train()
    assert not torch.equal(logits(own.model), before)


@pytest.mark.parametrize("name", ["dora", "pissa", "lora-and-tokens", "vera"])
def test_merging_an_adapter_keeps_the_function(name, tmp_path):
    stages = [Stage("a", "2 steps"), Stage("b", "1 steps", transforms=[MergeLora()], args={"learning_rate": 0.0})]
    trainer_of(tmp_path, adapted(KINDS[name][0]()), stages).train()
    merged = logits(stock(tmp_path / "02-b"))
    torch.testing.assert_close(merged, logits(load_stage(tmp_path / "01-a")[0]), rtol=0, atol=1e-5)
