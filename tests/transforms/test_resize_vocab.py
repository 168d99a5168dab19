from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from hf_stages.transforms import AddLora, Freeze, ResizeVocab


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("rows", [32, 48])
def test_embedding_and_head_get_the_rows(kind, tied, meta, rows, tiny, names):
    model = tiny(kind, meta=meta, tie_word_embeddings=tied)
    before = names(model)
    old = model.get_input_embeddings().weight.detach().clone()
    tied = tied or kind == "t5"  # T5 ties whatever its config says
    model = ResizeVocab(rows)(model)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert embedding.weight.shape[0] == head.weight.shape[0] == model.config.vocab_size == rows
    assert (embedding.weight is head.weight) == tied
    assert all(p.is_meta == meta for p in model.parameters())
    assert names(model) == before
    if not meta:
        assert torch.equal(embedding.weight[: min(rows, 40)], old[:rows])


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_old_tokens_keep_their_logits_and_new_ones_start_at_the_mean(kind, tiny, logits):
    model = tiny(kind)
    expected = logits(model)
    mean = model.get_input_embeddings().weight.mean(0)
    model = ResizeVocab(48)(model)
    torch.testing.assert_close(logits(model)[..., :40], expected)
    torch.testing.assert_close(model.get_input_embeddings().weight[40:], mean.expand(8, -1), rtol=0, atol=1e-3)


def test_two_untied_biases_of_bert_stay_two_and_survive_saving(tiny, logits, tmp_path):
    model = ResizeVocab(48)(tiny("bert", tie_word_embeddings=False))
    head = model.cls.predictions
    assert head.bias is not head.decoder.bias
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path)), logits(model))


def test_without_mean_resizing_new_rows_are_drawn(tiny):
    model = ResizeVocab(48, mean_resizing=False)(tiny("llama"))
    new = model.get_input_embeddings().weight[40:]
    assert 0.01 < new.std() < 0.03  # initializer_range is 0.02


@pytest.mark.parametrize(("to", "multiple_of", "rows"), [(None, 16, 48), (None, 8, 40), (49, 16, 64), (48, 16, 48)])
def test_rows_are_rounded_up_to_the_multiple(to, multiple_of, rows, tiny):
    model = ResizeVocab(to, multiple_of)(tiny("llama", meta=True))
    assert model.get_input_embeddings().weight.shape[0] == rows


@pytest.mark.parametrize(
    ("kind", "patterns"),
    [("bert", "embed*"), ("llama", "embed*"), ("bert", "cls.predictions.bias"), ("llama", "lm_head")],
)
def test_what_is_frozen_stays_frozen(kind, patterns, tiny, trainable):
    model = Freeze(patterns)(tiny(kind))
    expected = trainable(model)
    assert trainable(ResizeVocab(48)(model)) == expected


def test_moments_are_matched_by_name(tiny, names):
    model = tiny("llama")
    before = names(model)
    after = names(ResizeVocab(48)(model))
    assert ResizeVocab(48).moves(before, after) == {name: [name] for name in before}
    assert ResizeVocab(48).structural
    assert not ResizeVocab(48).keeps_function


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected to= .* got neither"),
        ({"to": 0}, "to: expected a whole number, at least 1, got 0"),
        ({"to": 1.5}, "to: expected"),
        ({"to": True}, "to: expected"),
        ({"multiple_of": 0}, "multiple_of: expected"),
    ],
)
def test_bad_values_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match="ResizeVocab: " + message):
        ResizeVocab(**options)


def test_refuses_to_cut_off_a_special_token(tiny):
    with pytest.raises(ValueError, match=r"config\.eos_token_id is 39; expected at least 40"):
        ResizeVocab(32)(tiny("llama", eos_token_id=[2, 39]))


def test_refuses_what_has_no_tokens(tiny):
    with pytest.raises(ValueError, match="ResizeVocab: expected a model with a token embedding, got a ViTFor"):
        ResizeVocab(48)(tiny("vit"))


def test_refuses_replaced_layers_and_adapters(tiny):
    class OtherLinear(nn.Linear):
        pass

    model = tiny("llama")
    model.lm_head = OtherLinear(16, 40, bias=False)
    with pytest.raises(ValueError, match="plain embedding and head, got a OtherLinear; put ResizeVocab before"):
        ResizeVocab(48)(model)
    assert ResizeVocab(40)(model) is model  # nothing to resize, nothing to lose
    with pytest.raises(ValueError, match="ResizeVocab: expected a model without adapters"):
        ResizeVocab(48)(AddLora(2)(tiny("llama")))


def test_it_is_a_plain_value():
    part = ResizeVocab(48, multiple_of=8)
    assert part == pickle.loads(pickle.dumps(part)) == eval(repr(part))
    assert hash(part)
