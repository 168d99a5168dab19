"""Staged runs of models whose blocks run several times: depths, resuming, low bits, transformers' own HRM-Text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, HrmTextConfig, HrmTextForCausalLM, TrainerCallback

from hf_stages import Gguf, Stage, pack
from hf_stages.core.curves import Linear
from hf_stages.layers import at_depth, find_recurrence
from hf_stages.transforms import Binarize, MakeRecurrent, SetRecurrence, Ternarize
from tests.support import tiny
from tests.support.recurrent import tokens
from tests.support.runs import StopAt, staged, summary
from tests.support.sameness import assert_same_folder

GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


class Depths(TrainerCallback):
    """Notes the step and the depth of each micro-batch."""

    def __init__(self):
        self.seen = []

    def on_substep_end(self, args, state, control, model=None, **kwargs):
        self.seen.append((state.global_step, find_recurrence(model).last_depth))

    on_step_end = on_substep_end


def looped_run(out, *more, norm="sandwich", **args):
    """Two stages: a depth that grows from one cycle, then a deeper one with ternary weights."""
    stages = [
        Stage("grow", "6 steps", transforms=[MakeRecurrent(1, 2, 1, norm=norm, mean_depth=Linear(0, 5), backprop=2)]),
        Stage("deep", "4 steps", transforms=[Ternarize(), SetRecurrence(mean_depth=Linear(5, 8))]),
    ]
    depths = Depths()
    args = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 4, "seed": 1, **args}
    trainer = staged(
        out, stages, model=tiny.llama(num_hidden_layers=4), args=args, callbacks=[depths, *more],
        eval_dataset=tiny.lm_data(8, seed=3),
    )  # fmt: skip
    return trainer, depths


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    trainer, depths = looped_run(tmp_path_factory.mktemp("looped") / "whole")
    trainer.train()
    return trainer, depths


@pytest.mark.parametrize("cut", [4, 8])
def test_a_resumed_run_draws_the_same_depths_and_states_as_the_uncut_one(whole, tmp_path, cut):
    trainer, depths = whole
    first, before = looped_run(tmp_path / "cut", StopAt(cut))
    first.train()
    torch.rand(7)
    second, after = looped_run(tmp_path / "cut")
    second.train(resume_from_checkpoint=True)
    assert before.seen + after.seen == depths.seen
    assert len({depth for _, depth in depths.seen}) > 3
    assert depths.seen[:2] == [(0, 1), (1, 1)]  # a mean of 0 is one cycle
    for folder in ("01-grow", "02-deep"):
        assert_same_folder(tmp_path / "cut" / folder, Path(trainer.args.output_dir) / folder)


def test_evaluation_runs_the_mean_depth_of_the_stage_s_end(whole):
    trainer, _ = whole
    for folder, depth in (("01-grow", 5), ("02-deep", 8)):
        loaded = AutoModelForCausalLM.from_pretrained(f"{trainer.args.output_dir}/{folder}").eval()
        assert find_recurrence(loaded).depth == depth
    assert torch.equal(loaded(tokens()).logits, trainer.model.eval()(tokens()).logits)


def test_that_the_function_is_kept_is_measured_on_the_stage_s_rows(tmp_path):
    core = MakeRecurrent(1, 2, 1, norm="pre", mean_depth=4)
    staged(tmp_path, [Stage("a", "1 steps", transforms=[core])], model=tiny.llama(num_hidden_layers=4)).train()
    assert summary(tmp_path, "01-a")["boundary"]["deviations"]["MakeRecurrent"] < 1e-6


@pytest.mark.parametrize("quantize", [Ternarize, Binarize])
def test_a_looped_low_bit_core_is_packed_and_generates_the_same_at_any_depth(tmp_path, quantize):
    stage = Stage("low", "20 steps", transforms=[MakeRecurrent(1, 2, 1, mean_depth=3), quantize()])
    rows = tiny.lm_data(1).select([0] * 16)  # learned by heart, so that no two tokens are about equally likely
    args = {"learning_rate": 1e-2}
    trainer = staged(tmp_path / "out", [stage], model=tiny.llama(num_hidden_layers=4), args=args, train_dataset=rows)
    trainer.train()
    pack(tmp_path / "out" / "01-low", tmp_path / "packed")
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "packed").eval()
    trained, ids = trainer.model.eval(), torch.tensor(rows[0]["input_ids"])[None, :6]
    assert type(find_recurrence(packed).layers[0].mlp.up_proj).__name__ == "PackedLinear"
    for depth in (1, 4, 9):
        with at_depth(packed, depth), at_depth(trained, depth):
            assert torch.equal(packed.generate(ids, **GREEDY), trained.generate(ids, **GREEDY))
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("packed", "out/01-low")]
    assert sizes[0] < sizes[1] / 8
    with pytest.raises(ValueError, match="stock transformers has no class for it"):
        pack(tmp_path / "out" / "01-low", tmp_path / "portable", portable=True)
    with pytest.raises(ValueError, match="Gguf: expected a plain LlamaForCausalLM"):
        Gguf()(tmp_path / "out" / "01-low", tmp_path / "gguf")


def hrm():
    config = HrmTextConfig(
        vocab_size=tiny.VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        head_dim=8, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, H_cycles=2, L_cycles=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return HrmTextForCausalLM(config)


def test_transformers_own_hrm_text_trains_resumes_and_loads(tmp_path):
    def run(name, *callbacks):
        stages = [Stage("first", "4 steps"), Stage("second", "4 steps", args={"learning_rate": 5e-4})]
        args = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 3, "learning_rate": 3e-3}
        data = tiny.lm_data(8)
        return staged(tmp_path / name, stages, model=hrm(), args=args, callbacks=[*callbacks], train_dataset=data)

    whole = run("whole")
    whole.train()
    run("cut", StopAt(3)).train()
    run("cut").train(resume_from_checkpoint=True)
    for folder in ("01-first", "02-second"):
        assert_same_folder(tmp_path / "cut" / folder, tmp_path / "whole" / folder)
    losses = [log["loss"] for log in whole.state.log_history if "loss" in log]
    assert losses[-1] < losses[0] - 0.05
    model, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "02-second").eval(), tokens()
    assert torch.equal(model(ids).logits, whole.model.eval()(ids).logits)
    assert torch.equal(model.generate(ids, **GREEDY), model.generate(ids, **GREEDY, use_cache=False))
