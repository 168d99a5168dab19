"""Files of llama.cpp: read back by gguf, by transformers' own reader, and by a few lines of its graphs."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as tf

from hf_stages import Stage, recipes
from hf_stages.layers import Quantizer, SplitLinear, TernaryLinear
from hf_stages.packing.formats import Gguf, model_weights
from hf_stages.packing.formats.gguf_blocks import block_type, to_blocks
from hf_stages.packing.formats.gguf_models import rope_order
from hf_stages.packing.formats.model_weights import levels_of
from hf_stages.transforms import Binarize, InsertSubLN, MakeRecurrent, SplitTernary, Ternarize
from tests.packing.formats.folders import loaded, sentencepiece, trained
from tests.support import tiny
from tests.support.runs import staged

gguf = pytest.importorskip("gguf", reason="the GGUF exporter needs gguf: pip install 'hf_stages[gguf]'")
pytestmark = pytest.mark.usefixtures("quick_gc")

WIDE = {
    "vocab_size": 300,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
HALF = 2.0**-11
"""By how much fp16 is off, of a number."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A ternary Llama and what a stage's exporter left beside it."""
    out = tmp_path_factory.mktemp("llama")
    model = tiny.llama(**WIDE, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0})
    exporters = [Gguf(strict=True), Gguf("wide.gguf", rest="float32")]
    return trained(out, model, [Ternarize()], tokenizer=sentencepiece(), exporters=exporters)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    out = tmp_path_factory.mktemp("bert")
    model = tiny.bert(**{key: WIDE[key] for key in ("hidden_size", "num_attention_heads")}, hidden_act="gelu_new")
    return trained(out, model, [Binarize(activations=None)])


def tensors(file):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def field(file, name):
    found = gguf.GGUFReader(file).fields.get(name)
    return None if found is None else found.contents()


def values(tensor):
    """What a tensor stands for; gguf itself does not read Q1_0 yet."""
    if tensor.tensor_type.name != "Q1_0":
        return gguf.dequantize(tensor.data, tensor.tensor_type)
    rows = []
    for row in tensor.data.reshape(-1, tensor.shape[0] // 128 * 18):
        parts = [(block[:2].copy().view("<f2")[0], block[2:]) for block in row.reshape(-1, 18)]
        signs = [[1 if codes[i // 8] >> (i % 8) & 1 else -1 for i in range(128)] for _, codes in parts]
        rows.append(np.concatenate([np.float32(d) * np.array(s) for (d, _), s in zip(parts, signs, strict=True)]))
    return np.array(rows, np.float32)


def exports(folder):
    return folder.parent / f"{folder.name}-exports"


def test_ternary_rows_come_back_up_to_the_scales_rounding(llama):
    found, model = tensors(exports(llama) / "model.gguf"), loaded(llama)
    with torch.no_grad():
        pairs = {
            "token_embd.weight": model.model.embed_tokens.weight,
            "blk.1.attn_v.weight": model.model.layers[1].self_attn.v_proj.weight,
            "blk.0.ffn_down.weight": model.model.layers[0].mlp.down_proj.weight,
        }
    for name, weight in pairs.items():
        assert found[name].tensor_type.name == "TQ2_0"
        got, want = values(found[name]), weight.detach().numpy()
        assert np.array_equal(np.sign(got), np.sign(want))
        assert (np.abs(got - want) <= HALF * np.abs(want)).all()
    kinds = {tensor.tensor_type.name for tensor in found.values()}
    assert kinds == {"TQ2_0", "F16", "F32"}
    assert found["output.weight"].tensor_type.name == "F16"


@pytest.mark.parametrize(("name", "bound"), [("wide.gguf", 2e-3), ("model.gguf", 4e-3)])
def test_transformers_reads_the_same_llama_from_the_file(llama, name, bound):
    """It undoes the order of queries and keys, and reads the numbers of the config; it rounds no activations."""
    own, ids = loaded(llama, rounding=False), torch.arange(3, 40)[None]
    other = tf.AutoModelForCausalLM.from_pretrained(exports(llama), gguf_file=name, dtype=torch.float32)
    assert (other.config.num_key_value_heads, other.config.head_dim, other.config.vocab_size) == (2, 64, 300)
    # It knows nothing of rope_freqs, which llama.cpp divides frequencies by.
    factors = torch.from_numpy(np.array(values(tensors(exports(llama) / name)["rope_freqs.weight"])))
    other.model.rotary_emb.inv_freq /= factors
    with torch.no_grad():
        want, got = own(ids).logits, other(ids).logits
    assert (got - want).abs().max() <= bound * want.abs().max()


def test_reordered_queries_and_keys_give_the_same_scores():
    """llama.cpp turns neighbouring rows, transformers the two halves of a head."""
    heads, width, place = 2, 8, 5
    q, k = torch.randn(2, heads * width, dtype=torch.float64)
    angles = torch.arange(1, width // 2 + 1, dtype=torch.float64) * place / 3

    def halves(x):
        one, two = x.view(heads, 2, -1).unbind(1)
        return torch.cat([one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()], -1)

    def neighbours(x):
        one, two = x[rope_order(heads * width, heads)].view(heads, -1, 2).unbind(-1)
        return torch.stack(
            [one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()], -1
        ).flatten(1)

    want, got = (halves(q) * k.view(heads, -1)).sum(-1), (neighbours(q) * k[rope_order(16, 2)].view(heads, -1)).sum(-1)
    torch.testing.assert_close(got, want)


def bert_of_llama_cpp(found, ids, heads, eps):
    """Its graph of a BERT with a classifier's head, for one sequence."""

    def linear(name, x):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    w = {name: torch.from_numpy(np.array(values(tensor), np.float32)) for name, tensor in found.items()}
    x = w["token_embd.weight"][ids] + w["token_types.weight"][0] + w["position_embd.weight"][: len(ids)]
    x = norm("token_embd_norm", x)
    for i in range(2):
        q, k, v = (linear(f"blk.{i}.attn_{part}", x).view(len(ids), heads, -1).transpose(0, 1) for part in "qkv")
        seen = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(len(ids), -1)
        x = norm(f"blk.{i}.attn_output_norm", x + linear(f"blk.{i}.attn_output", seen))
        inner = F.gelu(linear(f"blk.{i}.ffn_up", x), approximate="tanh")
        x = norm(f"blk.{i}.layer_output_norm", x + linear(f"blk.{i}.ffn_down", inner))
    return linear("cls.output", torch.tanh(linear("cls", x[0])))


def test_a_binary_classifier_keeps_its_logits(bert, tmp_path):
    report = Gguf(rest="float32")(bert, tmp_path)
    found, model, ids = tensors(report.file), loaded(bert), torch.arange(3, 20)
    assert report.tensors["Q1_0"] == 12
    assert found["token_embd.weight"].tensor_type.name == "Q1_0"
    with torch.no_grad():
        want, got = model(ids[None]).logits[0], bert_of_llama_cpp(found, ids, 4, model.config.layer_norm_eps)
    assert (got - want).abs().max() <= 2e-3 * want.abs().max()
    assert field(report.file, "tokenizer.ggml.token_type_count") == 2
    assert field(report.file, "bert.pooling_type") == gguf.PoolingType.RANK
    assert field(report.file, "bert.classifier.output_labels") == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_rows_that_blocks_do_not_fill_are_written_in_float16_and_named(bert, tmp_path):
    """intermediate_size is 64 here: rows of the last layer of a block cannot be Q1_0."""
    report = Gguf()(bert, tmp_path)
    assert "blk.0.ffn_down.weight" in report.notes[-1]
    assert "blocks of 128" in report.notes[-1]
    assert tensors(report.file)["blk.0.ffn_down.weight"].tensor_type.name == "F16"
    with pytest.raises(ValueError, match=r"blk.0.ffn_down.weight: Q1_0 has blocks of 128, .* rows of 64; strict=False"):
        Gguf("strict.gguf", strict=True)(bert, tmp_path)
    with pytest.raises(ValueError, match=r"model.gguf is there already; choose another name"):
        Gguf()(bert, tmp_path)


def test_groups_and_halves_are_written_where_blocks_can_hold_them():
    for per, fits in ((256, True), (512, True), ("tensor", True), (128, False)):
        layer = TernaryLinear(512, 4, per=per)
        weight = levels_of("x", layer)
        if not fits:
            with pytest.raises(ValueError, match="groups of 128"):
                block_type(weight)
            continue
        got = gguf.dequantize(to_blocks(weight, block_type(weight)), gguf.GGMLQuantizationType.TQ2_0)
        assert np.allclose(got, layer.weight.detach().numpy(), rtol=HALF, atol=0)
    split = SplitLinear(256, 4)
    with torch.no_grad():
        split.latents[0].mul_(1.5)
    with pytest.raises(ValueError, match="four values"):
        block_type(levels_of("x", split))
    # Learned scales that are still equal: two signs add up to a ternary weight.
    same = SplitLinear.from_layer(
        split, Quantizer("binary", "learned"), None, split.latents, [torch.ones(4), torch.ones(4)]
    )
    weight = levels_of("x", same)
    got = gguf.dequantize(to_blocks(weight, block_type(weight)), gguf.GGMLQuantizationType.TQ2_0)
    assert np.array_equal(got, same.weight.detach().numpy())
    assert set(np.unique(got)) == {-2.0, 0.0, 2.0}


def test_a_split_model_is_written_without_loss(tmp_path):
    folder = trained(tmp_path / "run", tiny.llama(), [Ternarize(activations=None), SplitTernary()])
    report = Gguf(rest="float32")(folder, tmp_path)
    assert "no tokenizer" in report.notes[0]
    assert "four values" in report.notes[1]
    other = tf.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(other(ids).logits, loaded(folder)(ids).logits)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([MakeRecurrent(1, 1, 0), Ternarize()], "expected a plain LlamaForCausalLM"),
        ([InsertSubLN(), Ternarize()], "expected a plain LlamaForCausalLM"),
        ([], "has no quantized layers"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_before_the_first_step(transforms, message, tmp_path):
    stages = [Stage("first", "1 steps"), Stage("low", "1 steps", transforms=transforms, exporters=[Gguf()])]
    trainer = staged(tmp_path, stages, model=tiny.llama(num_hidden_layers=2))
    with pytest.raises(ValueError, match=f"stage 'low': exporters\\[0\\]: Gguf: {message}"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("build", "transforms", "message"),
    [
        (tiny.vit, [Ternarize()], "expected one of LlamaForCausalLM, .* got a ViTForImageClassification"),
        (tiny.llama, [], "has no quantized layers"),
        (tiny.llama, [InsertSubLN(), Ternarize()], "InsertSubLN"),
    ],
)
def test_models_that_the_format_cannot_hold_are_refused(tmp_path, build, transforms, message, monkeypatch):
    model = build()
    for transform in transforms:
        model = transform(model)
    monkeypatch.setattr(model_weights, "read_stage", lambda folder: (model, []))
    with pytest.raises(ValueError, match=message):
        Gguf()(tmp_path, tmp_path)


def test_a_changed_architecture_is_refused(llama, tmp_path, monkeypatch):
    model = loaded(llama)
    model.model.layers[0].self_attn.extra = torch.nn.Linear(2, 2)
    monkeypatch.setattr(model_weights, "read_stage", lambda folder: (model, []))
    with pytest.raises(ValueError, match=r"layers.0.self_attn.extra.weight"):
        Gguf()(tmp_path, tmp_path)
    assert not (tmp_path / "model.gguf").exists()


def test_wrong_arguments_are_refused(monkeypatch):
    for given, message in (
        ({"name": "model.bin"}, "ends in .gguf"),
        ({"rest": "int8"}, "rest: expected one of float16"),
        ({"pooling": "max"}, "pooling: expected one of none"),
    ):
        with pytest.raises(ValueError, match=message):
            Gguf(**given)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "gguf" else real(name, *more))
    with pytest.raises(ValueError, match=r"needs the package gguf: pip install 'hf_stages\[gguf\]'"):
        Gguf()


def test_a_recipe_can_name_it():
    text = "stages: [{name: low, until: 1 steps, exporters: [{use: Gguf, strict: true}]}]"
    (stage,) = recipes.loads(text).stages
    assert stage == Stage("low", "1 steps", exporters=[Gguf(strict=True)])
