"""Kinds of PEFT adapters in a run: trained, cut, resumed; folders are read by us, by PEFT and by transformers."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
)

from hf_stages import Stage, StagedTrainer
from hf_stages.models.stage_models import load_stage
from hf_stages.transforms import AddLora
from tests.models.adapter_kinds import (
    INPUT,
    KINDS,
    MORE,
    SLOW,
    Cut,
    adapted,
    assert_stock,
    kind,
    logits,
    lora,
    stock,
    trainer_of,
)
from tests.support import tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("quick_gc")


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
