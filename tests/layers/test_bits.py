"""Bits over everything, against counts made by hand and the numbers that a sheet gives for BERT-base."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5ForConditionalGeneration,
)

from hf_stages.layers import BinaryLinear, Quantizer, SplitLinear, StoredBits, TernaryLinear, stored_size
from hf_stages.transforms import AddLora, Binarize, ReduceLayers, SplitTernary, Ternarize
from tests.support import tiny

MIB = 2**20


def on_meta(kind, config, *transforms):
    with torch.device("meta"):
        model = kind(config)
    for transform in transforms:
        model = transform(model)
    return model


def base(*transforms):
    return on_meta(BertForSequenceClassification, BertConfig(), *transforms)


def test_bert_base_in_one_bit():
    """XTC: 417.6 MiB in fp32; 12.9 of levels, 15.1 with all else in fp16, 17.3 with all else in fp32.

    There is one scale for each matrix and for each row of the word embeddings. The pooler is not quantized.
    """
    plain = stored_size(base())
    assert (f"{plain.fp32_bytes / MIB:.1f}", plain.bits_per_weight, plain.ratio()) == ("417.6", 16, 2)
    size = stored_size(base(Binarize("*word_embeddings"), Binarize("bert.encoder.*", per="tensor")))
    levels = sum(part.level_bits for part in size.parts.values()) / 8
    assert [f"{n / MIB:.1f}" for n in (levels, size.bytes, size.bytes_rest_fp32)] == ["12.9", "15.1", "17.3"]
    assert [round(size.fp32_bytes / n) for n in (levels, size.bytes, size.bytes_rest_fp32)] == [32, 28, 24]
    rows = stored_size(base(Binarize(exclude="pooler.dense")))
    matrices, scales = 12 * 6, 12 * (4 * 768 + 3072 + 768)
    assert rows.bytes - size.bytes == 2 * (scales - matrices)  # 0.16 MiB
    pooler = stored_size(base(Binarize()))  # row scales everywhere, and the pooler in one bit too
    assert [f"{n / MIB:.1f}" for n in (pooler.bytes, pooler.bytes_rest_fp32)] == ["14.2", "15.4"]


def test_five_layers_are_compared_with_the_model_that_the_run_began_with():
    """Known: 9.1 MiB, 46 times smaller than twelve layers in fp32."""
    size = stored_size(base(ReduceLayers([1, 3, 5, 7, 9]), Binarize(exclude="pooler.dense", per="row")))
    began = stored_size(base()).weights
    assert (f"{size.bytes / MIB:.1f}", round(size.ratio(began))) == ("9.1", 46)
    assert size.ratio() < 28 < size.ratio(began) == pytest.approx(size.to_dict(began)["initial_fp32_ratio"], abs=1e-4)


@pytest.mark.parametrize(("per", "scales"), [("row", 6), (4, 24), ("tensor", 1)])
def test_levels_and_scales_are_counted_by_their_groups(per, scales):
    options = {"per": per, "bias": False}
    for layer, bits, halves in (
        (BinaryLinear(16, 6, **options), 1, 1),
        (TernaryLinear(16, 6, **options), 2, 1),
        (TernaryLinear(16, 6, method="learned", **options), 2, 1),  # its scales are parameters, and counted once
        (SplitLinear(16, 6, **options), 1, 2),
        (SplitLinear.from_ternary(TernaryLinear(16, 6, method="learned", **options)), 1, 2),
    ):
        size = stored_size(layer)
        assert size.weights == 96, layer
        assert size.total.level_bits == 96 * bits * halves, layer
        assert size.total.floats == scales * halves, layer
        assert size.bytes_rest_fp32 - size.bytes == 2 * scales * halves


def test_rows_of_a_transposed_weight_are_its_outputs():
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=8)
    size = stored_size(on_meta(GPT2LMHeadModel, config, Binarize()))
    assert size.parts["blocks"].floats == 3 * 16 + 16 + 4 * 16 + 16


def test_tied_weights_are_stored_once_and_split_embeddings_twice_one_bit():
    both = Ternarize(["*word_embeddings", "cls.predictions.decoder"])
    model = on_meta(BertForMaskedLM, tiny.bert_config(), both)
    plain = stored_size(on_meta(BertForMaskedLM, tiny.bert_config()))
    size = stored_size(model)
    assert size.weights == plain.weights == sum(p.numel() for p in model.parameters())
    assert (size.parts["word embeddings"].level_bits, size.parts["word embeddings"].floats) == (2 * 64 * 32, 64)
    split = stored_size(SplitTernary()(model))
    assert (split.weights, split.parts["word embeddings"].floats) == (plain.weights, 2 * 64)
    assert split.parts["word embeddings"].tensors == {"2 x 1-bit": 1}


def test_parts_of_an_encoder_and_decoder_and_of_experts():
    size = stored_size(on_meta(T5ForConditionalGeneration, tiny.t5_config()))
    assert list(size.parts) == [
        "word embeddings", "other embeddings", "encoder blocks", "decoder blocks", "norms and biases"
    ]  # fmt: skip
    config = MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4,
    )  # fmt: skip
    size = stored_size(on_meta(MixtralForCausalLM, config))
    assert size.parts["experts"].weights == 4 * 3 * 16 * 8
    assert size.parts["head"].weights == 40 * 16
    for per, scales in (("tensor", 4 * 2), ("row", 4 * (16 + 16)), (4, 4 * (16 * 4 + 16 * 2))):
        for halves, transforms in ((1, [Ternarize(per=per)]), (2, [Ternarize(per=per), SplitTernary()])):
            experts = stored_size(on_meta(MixtralForCausalLM, config, *transforms)).parts["experts"]
            assert (experts.weights, experts.floats) == (4 * 3 * 16 * 8, halves * scales)


def test_a_vision_model_has_no_word_embeddings():
    size = stored_size(tiny.vit())
    assert size.weights == sum(p.numel() for p in tiny.vit().parameters())
    assert list(size.parts) == ["other embeddings", "blocks", "head", "norms and biases"]


def test_buffers_that_are_stored_count():
    norm = nn.BatchNorm1d(4)  # weight, bias, mean and variance; a count of 64 bits
    assert stored_size(norm).bytes == 2 * 16 + 8
    norm.register_buffer("passing", torch.zeros(100), persistent=False)
    assert stored_size(norm).bytes == 2 * 16 + 8


class _Experts(nn.Module):
    """A module of one's own that says what it packs."""

    def __init__(self):
        super().__init__()
        self.up_latent = nn.Parameter(torch.zeros(3, 4, 8))
        self.bias = nn.Parameter(torch.zeros(3, 4))

    def stored_bits(self):
        return (StoredBits.from_quantizer(("up_latent",), Quantizer("ternary", "twn"), (3 * 4, 8)),)


def test_a_module_of_your_own_may_say_what_packing_keeps():
    size = stored_size(nn.Sequential(_Experts(), nn.Linear(4, 2, bias=False)))
    assert (size.total.level_bits, size.total.floats) == (2 * 96, 12 + 12 + 8)


def test_weights_packed_by_another_library_are_refused():
    model = nn.Linear(4, 2)
    model.weight = nn.Parameter(torch.zeros(2, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"weight: expected weights in floating point, got torch\.int8"):
        stored_size(model)


def test_adapters_are_a_part_of_their_own():
    pytest.importorskip("peft")
    model = AddLora(r=2, target_modules="q_proj")(tiny.llama())
    size = stored_size(model)
    assert size.parts["adapters"].weights == 2 * 2 * (32 + 32)
    assert size.weights == sum(p.numel() for p in model.parameters())
