from __future__ import annotations

import logging
import pickle

import pytest
import torch
import transformers as tf
from torch import nn

from hf_stages.transforms import AddLora, Freeze, SetTask

SEQUENCE, TOKEN, IMAGE = (
    f"AutoModelFor{task}" for task in ("SequenceClassification", "TokenClassification", "ImageClassification")
)
# (kind, target, prefix of the body before, prefix after, body parameters that are new)
CASES = [
    ("bert", SEQUENCE, "bert.", "bert.", {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}),
    ("bert", TOKEN, "bert.", "bert.", set()),
    ("bert", "AutoModelForCausalLM", "bert.", "bert.", set()),
    ("bert", "AutoModel", "bert.", "", {"pooler.dense.weight", "pooler.dense.bias"}),
    ("llama", SEQUENCE, "model.", "model.", set()),
    ("llama", TOKEN, "model.", "model.", set()),
    ("vit", IMAGE, "vit.", "vit.", set()),
    ("t5", SEQUENCE, "", "transformer.", set()),
    ("t5", TOKEN, "", "transformer.", set()),
]
HEADS = ("classifier", "score", "classification_head", "cls")


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize(("kind", "target", "old", "new", "fresh"), CASES)
def test_the_body_is_copied_bit_for_bit(kind, target, old, new, fresh, meta, tiny):
    model = tiny(kind, meta=meta)
    changed = SetTask(target)(model)
    assert type(changed) is type(getattr(tf, target).from_config(model.config))
    before = dict(model.named_parameters())
    checked = set()
    for name, parameter in changed.named_parameters():
        origin = before.get(old + name.removeprefix(new)) if name.startswith(new) else None
        if origin is None:
            assert name in fresh or name.startswith(HEADS)
            continue
        checked.add(name)
        assert parameter.is_meta == meta
        assert parameter.shape == origin.shape
        assert meta or torch.equal(parameter, origin)
        assert meta or parameter.data_ptr() != origin.data_ptr()  # the old model may go on as a teacher
    body = {n for n, _ in changed.named_parameters() if n.startswith(new) and not n.startswith(HEADS)}
    assert checked == body - fresh
    assert len(checked) > 15


@pytest.mark.parametrize(("kind", "target", "old", "new", "fresh"), CASES)
def test_moves_name_the_body_and_nothing_else(kind, target, old, new, fresh, tiny, names):
    model = tiny(kind)
    part = SetTask(target)
    before, after = names(model), names(part(model))
    moves = part.moves(before, after)
    kept = {n for n in after if n.startswith(new) and not n.startswith(HEADS)} - fresh
    assert {new_name for news in moves.values() for new_name in news} == kept
    assert all(news == [new + name.removeprefix(old)] for name, news in moves.items())


def test_hidden_states_are_those_of_the_old_body(tiny, logits):
    for kind, target in (("bert", TOKEN), ("llama", SEQUENCE), ("vit", IMAGE)):
        model = tiny(kind)
        expected = logits(model.base_model)
        assert torch.equal(logits(SetTask(target)(model).base_model), expected)


def test_buffers_are_copied(tiny):
    model = tiny("llama")
    model.model.rotary_emb.inv_freq.mul_(0.5)
    assert torch.equal(SetTask(SEQUENCE)(model).model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


def test_a_head_of_the_same_name_is_new(tiny, names):
    model = SetTask(TOKEN, num_labels=3)(tiny("llama"))
    changed = SetTask(SEQUENCE, num_labels=3)(model)
    assert changed.score.weight.shape == model.score.weight.shape
    assert not torch.equal(changed.score.weight, model.score.weight)
    moves = SetTask(SEQUENCE).moves(names(model), names(changed))
    assert "score.weight" not in moves
    assert len(moves) == len(names(model)) - 2  # weight and bias of the old head


def test_the_head_depends_on_torch_seed_alone(tiny):
    def head(noise):
        model = tiny("llama")
        with torch.no_grad():
            model.model.norm.weight.add_(noise)
        torch.manual_seed(3)
        return SetTask(SEQUENCE)(model).score.weight

    assert torch.equal(head(0.0), head(1.0))


def test_what_is_frozen_in_the_body_stays_frozen(tiny, trainable):
    model = Freeze(["layer.0", "embeddings", "cls"])(tiny("bert"))
    expected = {name for name in trainable(model) if name.startswith("bert.")}
    changed = trainable(SetTask(SEQUENCE)(model))
    assert {name for name in changed if not name.startswith(HEADS) and "pooler" not in name} == expected
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= changed


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_config_dtype_attention_and_mode_are_kept(attention, tiny):
    model = tiny("llama", attn_implementation=attention, pad_token_id=5).to(torch.bfloat16).train()
    model.config.problem_type = "regression"
    changed = SetTask(SEQUENCE, id2label={"1": "yes", "0": "no"})(model)
    assert {p.dtype for p in changed.parameters()} == {torch.bfloat16}
    assert changed.config._attn_implementation == attention == model.config._attn_implementation
    assert changed.model.layers[0].self_attn.config is changed.config
    assert changed.config.pad_token_id == 5
    assert changed.config.id2label == {0: "no", 1: "yes"}
    assert changed.config.label2id == {"no": 0, "yes": 1}
    assert changed.config.problem_type is None
    assert changed.training
    assert changed.model.layers[0].training
    assert not SetTask(SEQUENCE)(model.eval()).training
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


@pytest.mark.parametrize("options", [{"num_labels": 5}, {"id2label": list("abcde")}])
def test_labels_set_the_head(options, tiny):
    changed = SetTask(SEQUENCE, **options, problem_type="multi_label_classification")(tiny("bert", meta=True))
    assert changed.classifier.out_features == changed.config.num_labels == 5
    assert changed.config.problem_type == "multi_label_classification"


def test_back_to_a_language_model_ties_the_head_again(tiny):
    model = SetTask("AutoModelForCausalLM")(SetTask(SEQUENCE)(tiny("llama", tie_word_embeddings=True)))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_t5_embeddings_stay_tied(tiny):
    changed = SetTask(SEQUENCE)(tiny("t5"))
    assert changed.transformer.shared.weight is changed.transformer.encoder.embed_tokens.weight


class Doubled(nn.Linear):
    def __init__(self, size: int) -> None:
        super().__init__(size, size, bias=False)
        self.latent = nn.Parameter(torch.randn(size, size))

    def forward(self, x):
        return x @ self.latent.T


def test_replaced_layers_are_kept(tiny, logits):
    model = tiny("llama")
    model.model.layers[1].self_attn.o_proj = Doubled(16)
    expected = logits(model.base_model)
    changed = SetTask(SEQUENCE)(model)
    assert isinstance(changed.model.layers[1].self_attn.o_proj, Doubled)
    assert changed.model.layers[1].self_attn.o_proj is not model.model.layers[1].self_attn.o_proj
    assert torch.equal(logits(changed.base_model), expected)


def test_an_architecture_unlike_its_config_is_refused(tiny):
    model = tiny("llama")
    model.model.layers[0].self_attn.extra = nn.Linear(16, 16)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn .*differ in extra; .* set its own model_type"):
        SetTask(SEQUENCE)(model)
    model = tiny("llama")
    model.model.layers = model.model.layers[:1]
    with pytest.raises(ValueError, match=r"layers of the model and of a ModuleList .* differ in 1"):
        SetTask(SEQUENCE)(model)
    model = tiny("llama")
    model.config.vocab_size = 41
    with pytest.raises(ValueError, match=r"embed_tokens\.weight is \(40, 16\), but the config says \(41, 16\)"):
        SetTask(SEQUENCE)(model)


def test_the_log_names_what_is_new(tiny, caplog):
    with caplog.at_level(logging.INFO, logger="hf_stages"):
        SetTask(SEQUENCE)(tiny("bert"))
    fresh = caplog.messages[-1].split("new and random: ")[1].split(", ")
    assert fresh == [f"{place}.{end}" for place in ("bert.pooler.dense", "classifier") for end in ("weight", "bias")]


def test_refuses_adapters_and_strangers(tiny):
    with pytest.raises(ValueError, match=r"SetTask: expected a model without adapters.*MergeLora\(\)"):
        SetTask(SEQUENCE)(AddLora(2)(tiny("llama")))
    with pytest.raises(ValueError, match="SetTask: expected a model of transformers, got Linear"):
        SetTask(SEQUENCE)(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=f"SetTask: {IMAGE} from a LlamaForCausalLM: Unrecognized configuration"):
        SetTask(IMAGE)(tiny("llama"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auto_class": "AutoModelForSequenceClasification"}, f"did you mean '{SEQUENCE}'"),
        ({"auto_class": "BertModel"}, "auto_class: expected an AutoModel class"),
        ({"auto_class": 3}, "auto_class: expected"),
        ({"num_labels": 0}, "num_labels: expected at least 1"),
        ({"num_labels": 3, "id2label": ["a", "b"]}, "num_labels is 3, but id2label names 2"),
        ({"id2label": {0: "a", 2: "b"}}, r"id2label: expected the ids 0 to 1, got \[0, 2\]"),
        ({"id2label": ["a", "a"]}, "id2label: expected different labels"),
        ({"id2label": "ab"}, "id2label: expected different labels"),
        ({"problem_type": "classification"}, "problem_type: expected one of"),
    ],
)
def test_bad_values_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match="SetTask: .*" + message if "did you" in message else "SetTask: " + message):
        SetTask(**{"auto_class": SEQUENCE, **options})


def test_it_is_a_plain_value():
    part = SetTask(tf.AutoModelForSequenceClassification, id2label={0: "a", 1: "b"})
    assert part == SetTask(SEQUENCE, id2label=["a", "b"]) == pickle.loads(pickle.dumps(part)) == eval(repr(part))
    assert hash(part)
