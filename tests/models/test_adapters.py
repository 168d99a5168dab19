"""Kinds of PEFT adapters through a run: train, cut, resume; the folder read by us, by PEFT, and by stock transformers."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    TrainerCallback,
    TrainingArguments,
)

from hf_stages import Stage, StagedTrainer
from hf_stages.losses import AttentionMSE, AttentionRelation, HiddenMSE, LogitKL, TaskLoss
from hf_stages.models.adapter_folders import check_adapter
from hf_stages.models.adapters import layout_of
from hf_stages.models.stage_models import load_stage
from hf_stages.transforms import AddLora, MergeLora
from tests.support import tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("quick_gc")

TASK = "CAUSAL_LM"
LINEAR = {"target_modules": ["q_proj", "v_proj"], "task_type": TASK}
PROMPT = {"num_virtual_tokens": 2, "task_type": TASK}


def lora(**options):
    return lambda: peft.LoraConfig(**{"r": 2, **LINEAR, **options})


def kind(name, **options):
    return lambda: getattr(peft, name)(**options)


# (the adapter's config, whether stock transformers loads the stage's folder)
KINDS = {
    "lora": (lora(), True),
    "rslora": (lora(use_rslora=True), True),
    "dora": (lora(use_dora=True), True),
    "pissa": (lora(init_lora_weights="pissa"), True),
    "olora": (lora(init_lora_weights="olora"), True),
    "ia3": (kind("IA3Config", **LINEAR, feedforward_modules=[]), True),
    "loha": (kind("LoHaConfig", r=2, **LINEAR), True),
    "adalora": (kind("AdaLoraConfig", init_r=3, target_r=2, total_step=10, **LINEAR), False),
    "vera": (kind("VeraConfig", r=4, **LINEAR), False),
    "prompt": (kind("PromptTuningConfig", **PROMPT), False),
    "prefix": (kind("PrefixTuningConfig", **PROMPT), False),
    "layer-norms": (kind("LNTuningConfig", target_modules=["input_layernorm"], task_type=TASK), True),
    "tokens": (kind("TrainableTokensConfig", token_indices=[1, 3], task_type=TASK), True),
    "lora-and-tokens": (lora(trainable_token_indices=[1, 3]), True),
}
MORE = {
    # What a prompt's encoder says is stored, not the encoder; shared vectors; parameters in place of layers; other starts.
    "prefix-encoder": (kind("PrefixTuningConfig", prefix_projection=True, encoder_hidden_size=8, **PROMPT), False),
    "vb-lora": (kind("VBLoRAConfig", r=2, num_vectors=4, vector_length=4, topk=2, **LINEAR), False),
    "p-tuning": (kind("PromptEncoderConfig", encoder_hidden_size=8, **PROMPT), False),
    "lora-on-parameters": (lora(target_modules=[], target_parameters=["q_proj.weight"]), True),
    "lora-and-head": (lora(modules_to_save=["embed_tokens", "lm_head"]), True),
    "oft": (kind("OFTConfig", oft_block_size=4, r=0, **LINEAR), True),
    "lokr": (kind("LoKrConfig", r=2, **LINEAR), True),
    "fourier": (kind("FourierFTConfig", n_frequency=10, **LINEAR), True),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in [*MORE][2:]]
INPUT = torch.randint(3, tiny.VOCAB, (2, 7), generator=torch.Generator().manual_seed(3))
INPUT[0, :2] = torch.tensor([1, 3])


class Cut(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Stop(Cut):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def adapted(config, name="default", **changes):
    torch.manual_seed(1)
    return peft.get_peft_model(tiny.llama(**changes), config, adapter_name=name)


def trainer_of(out, model, stages=None, callbacks=(), data=None, **args):
    args = TrainingArguments(
        str(out), report_to="none", use_cpu=True, disable_tqdm=True, per_device_train_batch_size=4,
        **{"learning_rate": 1e-2, "save_strategy": "no", **args},
    )  # fmt: skip
    stages = stages or [Stage("a", "2 steps"), Stage("b", "3 steps")]
    data = {"train_dataset": data or tiny.lm_data(), "eval_dataset": (data or tiny.lm_data()).select(range(4))}
    return StagedTrainer(model, args, stages=stages, callbacks=list(callbacks), **data)


def logits(model, inputs=None):
    model.eval()
    with torch.no_grad():
        return model(**(inputs or {"input_ids": INPUT})).logits


def stock(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def by_peft(folder):
    """What PEFT makes of a folder whose base and adapter lie apart."""
    return peft.PeftModel.from_pretrained(stock(folder / "base"), folder / "adapter")


def assert_stock(folder, wanted, whole):
    """Stock gives the model or stops; where it stops, PEFT gives the model."""
    if whole:
        torch.testing.assert_close(logits(stock(folder)), wanted, rtol=0, atol=1e-6)
        return
    with pytest.raises((ValueError, OSError), match=r"config\.json"):
        stock(folder)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        type(tiny.llama()).from_pretrained(folder)
    torch.testing.assert_close(logits(by_peft(folder)), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*KINDS, *[*MORE][:2], *SLOW])
def test_each_kind_of_adapter_trains_is_saved_and_resumes(name, tmp_path):
    config, whole = (KINDS | MORE)[name]
    own = trainer_of(tmp_path / "whole", adapted(config()))
    before = logits(own.model)
    own.train()
    wanted = logits(own.model)
    assert not torch.equal(wanted, before)
    folder = tmp_path / "whole" / "02-b"
    assert torch.equal(logits(StagedTrainer.from_stage(folder, own.args).model), wanted)
    assert_stock(folder, wanted, whole)

    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path / "cut", adapted(config()), callbacks=[Cut(4)], save_strategy="steps", save_steps=1).train()
    again = trainer_of(tmp_path / "cut", adapted(config()), save_strategy="steps", save_steps=1)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(logits(again.model), wanted)
    for stage in ("01-a", "02-b"):
        for part in ("", "base", "adapter"):
            for file in (tmp_path / "whole" / stage / part).glob("*.safetensors"):
                assert file.read_bytes() == (tmp_path / "cut" / stage / part / file.name).read_bytes()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("config", [lora(modules_to_save=["lm_head"]), lora(trainable_token_indices=[1, 3])])
def test_tied_embeddings_are_saved_correctly(config, tied, tmp_path):
    own = trainer_of(tmp_path, adapted(config(), tie_word_embeddings=tied))
    own.train()
    wanted = logits(own.model)
    assert torch.equal(logits(load_stage(tmp_path / "02-b")[0]), wanted)
    assert_stock(tmp_path / "02-b", wanted, True)


@pytest.mark.parametrize(
    ("model", "auto", "config"),
    [
        (
            tiny.bert,
            AutoModelForSequenceClassification,
            kind("PromptTuningConfig", num_virtual_tokens=2, task_type="SEQ_CLS"),
        ),
        (tiny.t5, AutoModelForSeq2SeqLM, kind("PrefixTuningConfig", num_virtual_tokens=2, task_type="SEQ_2_SEQ_LM")),
        (
            tiny.bert,
            AutoModelForSequenceClassification,
            kind("LoraConfig", target_modules=["query"], use_dora=True, task_type="SEQ_CLS"),
        ),
    ],
    ids=["bert-prompt", "t5-prefix", "bert-dora"],
)
def test_adapters_on_models_of_other_tasks_are_saved_and_loaded(model, auto, config, tmp_path):
    torch.manual_seed(1)
    own = trainer_of(
        tmp_path, peft.get_peft_model(model(), config()), data=tiny.class_data() if model is tiny.bert else None
    )
    own.train()
    inputs = {"input_ids": INPUT} | ({} if model is tiny.bert else {"decoder_input_ids": INPUT})
    wanted, folder = logits(own.model, inputs), tmp_path / "02-b"
    assert torch.equal(logits(load_stage(folder)[0], inputs), wanted)
    if (folder / "base").is_dir():
        read = peft.PeftModel.from_pretrained(auto.from_pretrained(folder / "base"), folder / "adapter")
    else:
        read = auto.from_pretrained(folder)
    torch.testing.assert_close(logits(read, inputs), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"target_parameters": ["experts.down_proj"], "target_modules": []}]
)
def test_a_base_that_is_stored_under_other_names_is_loaded(options, tmp_path):
    """Experts lie one by one on disk and stacked in memory."""
    config = MixtralConfig(
        vocab_size=tiny.VOCAB, hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    torch.manual_seed(1)
    own = trainer_of(tmp_path, peft.get_peft_model(MixtralForCausalLM(config), lora(**options)()))
    own.train()
    wanted = logits(own.model)
    assert torch.equal(logits(load_stage(tmp_path / "02-b")[0]), wanted)
    assert_stock(tmp_path / "02-b", wanted, True)


def test_an_adapter_of_another_name_is_saved_and_loaded(tmp_path):
    """PEFT would write it to a folder of that name, beside which stock transformers sees no adapter."""
    own = trainer_of(tmp_path, adapted(lora()(), "mine"))
    own.train()
    wanted = logits(own.model)
    loaded = load_stage(tmp_path / "02-b")[0]
    assert list(loaded.peft_config) == ["mine"]
    assert torch.equal(logits(loaded), wanted)
    assert_stock(tmp_path / "02-b", wanted, True)


def two_adapters():
    model = adapted(lora()())
    torch.manual_seed(2)
    model.add_adapter("other", lora(r=3)())
    model.set_adapter("other")
    return model


def test_two_adapters_resume_and_stock_transformers_does_not_mix_them_up(tmp_path):
    args = {"save_strategy": "steps", "save_steps": 1}
    own = trainer_of(tmp_path / "whole", two_adapters())
    own.train()
    wanted, folder = logits(own.model), tmp_path / "whole" / "02-b"
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path / "cut", two_adapters(), callbacks=[Cut(4)], **args).train()
    again = trainer_of(tmp_path / "cut", two_adapters(), **args)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(logits(again.model), wanted)
    with pytest.raises((ValueError, OSError), match=r"config\.json"):
        stock(folder)
    card = (folder / "README.md").read_text()
    code, known = card.partition("```python")[2].partition("```")[0], {}
    exec(code.replace("whole/02-b", str(folder)), known)
    read = known["model"]
    read.set_adapter("other")
    assert torch.equal(logits(read), wanted)


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


def test_the_name_of_another_base_is_not_written(tmp_path):
    """The base was trained: PEFT's AutoPeftModel would put the adapter on the one that the run began with."""
    tiny.llama().save_pretrained(tmp_path / "from")
    stages = [Stage("a", "2 steps"), Stage("b", "2 steps", transforms=[AddLora(2, target_modules="q_proj")])]
    own = trainer_of(tmp_path / "out", stock(tmp_path / "from"), stages, save_strategy="steps", save_steps=1)
    own.train()
    for folder in ("02-b", "checkpoint-3"):
        config = json.loads((tmp_path / "out" / folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] is None
    assert_stock(tmp_path / "out" / "02-b", logits(own.model), True)


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
