"""Folders of the project's own model type: what loads them, and that nothing else does."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
import transformers as tf

from hf_stages import Stage, StagedTrainer
from hf_stages.losses import AttentionRelation, HiddenMSE
from hf_stages.models import auto_classes
from hf_stages.models.structure import Blueprint, load_weights, replay, save_weights
from hf_stages.transforms import InsertSubLN, SetTask, Transform
from tests.support import tiny

AUTO = {
    "llama": tf.AutoModelForCausalLM,
    "bert": tf.AutoModelForSequenceClassification,
    "vit": tf.AutoModelForImageClassification,
    "t5": tf.AutoModelForSeq2SeqLM,
}


def normed(kind="llama"):
    model = InsertSubLN()(getattr(tiny, kind)()).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def outputs(model):
    ids = torch.arange(3, 10)[None]
    batch = {"pixel_values": torch.linspace(0, 1, 768).view(1, 3, 16, 16)} if "vit" in model.config.model_type else {}
    batch = batch or {"input_ids": ids}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids
    with torch.no_grad():
        return model(**batch)[0]


@pytest.mark.parametrize("kind", AUTO)
def test_a_folder_saved_by_save_pretrained_loads(kind, tmp_path):
    model = normed(kind)
    model.save_pretrained(tmp_path)
    loaded = AUTO[kind].from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert type(loaded.config) is type(model.config)
    assert not loaded.training
    assert torch.equal(outputs(loaded), outputs(model))
    assert type(tf.AutoModel.from_pretrained(tmp_path)).__name__ in type(model.base_model).__name__ + "T5Model"
    assert AUTO[kind].from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(outputs(AUTO[kind].from_pretrained(tmp_path / "again")), outputs(model))
    # Weights into a structure that is there already, as at a boundary.
    blank = replay(Blueprint(getattr(tiny, kind)()).build(), [InsertSubLN()]).eval()
    load_weights(blank, tmp_path)
    assert torch.equal(outputs(blank), outputs(model))


def test_another_head_is_drawn_and_the_body_is_loaded(tmp_path):
    model = normed()
    model.save_pretrained(tmp_path)
    task = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert type(task) is tf.LlamaForSequenceClassification
    assert task.config.num_labels == 5
    assert all(torch.equal(a, b) for a, b in zip(task.model.parameters(), model.model.parameters(), strict=True))


def test_from_config_builds_the_changed_structure():
    model = normed()
    with torch.device("meta"):
        blank = tf.AutoModelForCausalLM.from_config(model.config)
    assert {n: p.shape for n, p in blank.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert blank.config.to_dict() == model.config.to_dict()


def test_a_blueprint_builds_the_changed_structure():
    model = normed()
    blueprint = Blueprint(model)
    for one in (blueprint, Blueprint.from_dict(json.loads(json.dumps(blueprint.to_dict())))):
        built = one.build()
        assert built.state_dict().keys() == model.state_dict().keys()
        assert type(built.config) is type(model.config)


def test_a_stage_folder_loads_with_all_its_transforms(tmp_path):
    model = normed()
    transforms = [{"use": "InsertSubLN"}, {"use": "Freeze", "patterns": "embed_tokens"}]
    base = Blueprint(tiny.llama()).to_dict()
    (tmp_path / "stage.json").write_text(json.dumps({"schema": 1, "base": base, "transforms": transforms}))
    save_weights(model, tmp_path)
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(outputs(loaded), outputs(model))
    assert not loaded.model.embed_tokens.weight.requires_grad  # the folder's own transforms, not only the config's
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert loaded.dtype == torch.bfloat16
    assert loaded.config._attn_implementation == "eager"
    # What asks for more than the folder holds is transformers' to answer.
    assert tf.AutoModelForCausalLM.from_pretrained(tmp_path, hidden_act="gelu").config.hidden_act == "gelu"
    loaded, info = tf.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(outputs(loaded), outputs(model))


@dataclass(frozen=True)
class Renormed(Transform):
    """A user's own transform that marks the model."""

    def __call__(self, model):
        InsertSubLN(where="ffn")(model)
        from hf_stages.layers.own_type import mark_own_type, record_of

        record_of(model.config)["transforms"].clear()
        mark_own_type(model, self)
        return model


def test_no_code_of_a_folder_runs_unless_it_is_trusted(tmp_path):
    Renormed()(tiny.llama()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code"):
        tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert "model.layers.0.mlp.down_proj.norm.weight" in loaded.state_dict()


def test_an_unknown_architecture_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "hf_stages", "hidden_size": 8}')
    with pytest.raises(ValueError, match=r"expected hf_stages.base_model_type to name an architecture .*, got None"):
        tf.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_registering_twice_is_harmless():
    auto_classes.register()
    assert tf.CONFIG_MAPPING["hf_stages"] is auto_classes.OwnConfig


def test_a_model_of_our_own_type_is_distilled(tmp_path, lm_data):
    args = tf.TrainingArguments(
        tmp_path, per_device_train_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True
    )
    loss = HiddenMSE() + AttentionRelation()
    stages = [Stage("distil", "2 steps", transforms=[InsertSubLN()], loss=loss)]
    trainer = StagedTrainer(tiny.llama(), args, teacher=tiny.llama(1), train_dataset=lm_data, stages=stages)
    trainer.train()
    assert type(SetTask("AutoModelForSequenceClassification")(trainer.model).config) is type(trainer.model.config)


STOCK = """
import sys
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
for load in (AutoModelForCausalLM, AutoConfig, LlamaForCausalLM):
    try:
        load.from_pretrained(sys.argv[1])
    except Exception as error:
        print(f"{load.__name__}: {error}")
    else:
        print(f"{load.__name__} loaded it")
assert "hf_stages" not in sys.modules
"""

OURS = """
import sys
import hf_stages
assert "transformers" not in sys.modules and "torch" not in sys.modules
from transformers import AutoConfig
assert AutoConfig.from_pretrained(sys.argv[1]).model_type == "llama"
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(model.model.layers[0].mlp.down_proj)
"""


@pytest.mark.slow
def test_stock_transformers_stops_and_ours_loads(tmp_path, run_python):
    folder = tmp_path / "folder"
    normed().save_pretrained(folder)
    said = run_python(STOCK, str(folder)).stdout
    assert "loaded it" not in said
    assert "AutoModelForCausalLM: The checkpoint you are trying to load has model type `hf_stages`" in said
    assert "AutoConfig: The checkpoint you are trying to load has model type `hf_stages`" in said
    assert "LlamaForCausalLM: Validation error" in said
    assert "made with hf_stages: load it with" in said
    assert "NormedLinear" in run_python(OURS, str(folder)).stdout
