"""Packing: the same weights to the bit, the same function, really small, and loaded by transformers as any model."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertForSequenceClassification,
)

from hf_stages.core.curves import Linear
from hf_stages.layers import at_depth
from hf_stages.layers.bits import stored_size
from hf_stages.layers.quantized import Quantized
from hf_stages.packing import PackedEmbedding, PackedLinear, pack
from hf_stages.transforms import Binarize, MakeRecurrent, SplitTernary, Ternarize
from tests.packing.models import IDS, KINDS, inputs, loaded, logits, quantized
from tests.support import tiny

pytestmark = pytest.mark.usefixtures("quick_gc")


def weights(model):
    """Effective weights by module, rows as outputs, of quantized and of packed layers."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Quantized):
            found[name] = module.weight.detach().t() if module.transposed else module.weight.detach()
        elif isinstance(module, PackedLinear | PackedEmbedding):
            found[name] = module.dense()
    return found


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_packed_model_is_the_one_that_was_trained(kind, tmp_path):
    model = quantized(kind)
    size = pack(model, tmp_path / "packed", rest="float32", embeddings=None)
    packed = loaded(tmp_path / "packed", kind)
    own, theirs = weights(model), weights(packed)
    assert own.keys() == theirs.keys()
    assert len(own) > 5
    for name in own:
        assert torch.equal(own[name], theirs[name]), name
    # Only the order of fp32 sums differs: whole numbers are added up exactly, then multiplied with the scales.
    torch.testing.assert_close(logits(packed), logits(model), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, Quantized) for module in packed.modules())
    assert size.bytes == sum(file.stat().st_size for file in (tmp_path / "packed").glob("*.safetensors"))
    # Again through transformers' own saving.
    packed.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(loaded(tmp_path / "again", kind)), logits(packed))


@pytest.mark.parametrize("kind", ["bert-binary", "llama-tied-split-learned", "gpt2", "t5-tied"])
def test_dequantizing_gives_a_plain_model(kind, tmp_path):
    model = quantized(kind)
    pack(model, tmp_path / "packed", rest="float32", embeddings=None)
    packed = loaded(tmp_path / "packed", kind)
    packed.dequantize()
    for module in model.modules():
        if hasattr(module, "activations"):
            module.activations = None  # a plain layer does not round what enters it
    torch.testing.assert_close(logits(packed), logits(model), rtol=1e-4, atol=1e-5)
    packed.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    plain = loaded(tmp_path / "plain", kind)
    assert type(plain.get_output_embeddings() or nn.Linear(1, 1)) is nn.Linear
    assert torch.equal(logits(plain), logits(packed))


@pytest.mark.slow
def test_a_bert_base_is_as_small_as_promised(tmp_path):
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    sizes = {}
    for name, transform in (("binary", Binarize()), ("ternary", Ternarize())):
        sizes[name] = pack(transform(copy.deepcopy(model)), tmp_path / name)
    assert sizes["binary"].bytes <= 16 * 2**20
    assert sizes["ternary"].bytes <= 29 * 2**20
    assert sizes["binary"].weights == sum(p.numel() for p in model.parameters())
    packed = loaded(tmp_path / "binary")
    resident = sum(t.numel() * t.element_size() for t in [*packed.parameters(), *packed.buffers()])
    assert resident <= 1.15 * sizes["binary"].bytes


def test_the_table_adds_up_and_names_its_parts(tmp_path):
    size = pack(quantized("bert-binary"), tmp_path / "packed")
    assert {"word embeddings", "other embeddings", "blocks", "head", "file headers"} <= set(size.parts)
    # 64 rows of 32 bits and a scale of 4 bytes.
    assert size.parts["word embeddings"] == 64 * 4 + 64 * 4
    assert "bits per weight" in str(size)
    written = json.loads((tmp_path / "packed" / "packed.json").read_text())
    assert written["size"] == size.to_dict()
    counted = stored_size(loaded(tmp_path / "packed"))
    assert counted.weights == size.weights == stored_size(quantized("bert-binary")).weights


def test_a_vocabulary_in_full_precision_takes_eight_bits(tmp_path):
    model = Ternarize(embeddings=False)(tiny.llama(tie_word_embeddings=True)).eval()
    pack(model, tmp_path / "packed", rest="float32")
    packed = loaded(tmp_path / "packed", "llama")
    table, head = packed.model.embed_tokens, packed.lm_head
    assert table.weight is head.weight
    assert table.scale is head.scale
    # A level is a 127th of a row's largest value, and rounding is off by half of one at most.
    off = (table.dense() - model.model.embed_tokens.weight).abs()
    assert bool((off <= table.scale / 2 * 1.0001).all())
    assert torch.equal(packed.get_input_embeddings()(IDS), table.dense()[IDS])
    x = torch.randn(3, 32)
    torch.testing.assert_close(head(x), x @ head.dense().t())


def test_it_computes_in_the_dtype_that_is_asked_for(tmp_path):
    pack(quantized("bert-binary"), tmp_path / "packed")
    packed = loaded(tmp_path / "packed")
    assert packed.dtype == torch.float32  # what is stored in 16 bits computes in 32
    before = weights(packed)
    half = loaded(tmp_path / "packed", dtype=torch.bfloat16)
    moved = copy.deepcopy(packed).to(torch.bfloat16)
    for model in (half, moved):
        assert logits(model).dtype == torch.bfloat16
        assert {name: w.dtype for name, w in weights(model).items()} == dict.fromkeys(before, torch.float32)
        assert all(torch.equal(w, before[name]) for name, w in weights(model).items())


def test_it_loads_with_other_heads_and_without_a_head(tmp_path):
    model = quantized("bert-binary")
    pack(model, tmp_path / "packed", rest="float32")
    bare = AutoModel.from_pretrained(tmp_path / "packed").eval()
    with torch.no_grad():
        assert torch.equal(bare(IDS).pooler_output, loaded(tmp_path / "packed").bert(IDS).pooler_output)
    # Its output embeddings are the packed table; the rest of the head is new.
    masked = AutoModelForMaskedLM.from_pretrained(tmp_path / "packed")
    assert masked.cls.predictions.decoder.weight is masked.bert.embeddings.word_embeddings.weight
    masked.save_pretrained(tmp_path / "masked")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "masked")
    assert torch.equal(logits(again.eval()), logits(masked.eval()))
    # No pooler was saved: it is new, and not packed.
    assert type(AutoModel.from_pretrained(tmp_path / "masked").pooler.dense) is nn.Linear


def test_it_loads_from_shards_moves_and_generates(tmp_path):
    model = quantized("llama-tied")
    pack(model, tmp_path / "packed", rest="float32", max_shard_size="5KB")
    assert len(list((tmp_path / "packed").glob("*.safetensors"))) > 1
    packed = loaded(tmp_path / "packed", "llama", device_map="cpu")
    words = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(packed.generate(IDS, **words), model.generate(IDS, **words))


def test_adapters_train_on_top(tmp_path):
    peft = pytest.importorskip("peft")
    pack(quantized("llama-tied"), tmp_path / "packed")
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=2, task_type="CAUSAL_LM")
    model = peft.get_peft_model(loaded(tmp_path / "packed", "llama"), config)
    before = weights(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(4):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(w, before[name]) for name, w in weights(model).items())
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(loaded(tmp_path / "packed", "llama"), tmp_path / "adapter")
    assert torch.equal(logits(again.eval()), logits(model.eval()))


def test_a_copy_shares_no_memory(tmp_path):
    pack(quantized("bert-binary"), tmp_path / "packed")
    packed = loaded(tmp_path / "packed")
    copied = copy.deepcopy(packed)
    assert torch.equal(logits(copied), logits(packed))
    copied.bert.pooler.dense.scale.data.zero_()
    assert not torch.equal(logits(copied), logits(packed))


@pytest.mark.slow
def test_a_packed_model_compiles(tmp_path):
    pack(quantized("bert-binary"), tmp_path / "packed")
    packed = loaded(tmp_path / "packed")
    with torch.no_grad():
        compiled = torch.compile(packed, backend="eager")(**inputs(packed)).logits
    assert torch.equal(compiled, logits(packed))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: tiny.bert(), "no quantized layers"),
        (lambda: Ternarize(strength=Linear(0, 1))(tiny.bert()), "full strength"),
        (lambda: torch.nn.Linear(2, 2), "expected a transformers model"),
    ],
    ids=["plain", "strength", "no model"],
)
def test_what_cannot_be_packed_is_refused(change, words, tmp_path):
    model = change()
    if "strength" in words:
        next(m for m in model.modules() if isinstance(m, Quantized)).set_strength(0.5)
    with pytest.raises(ValueError, match=words):
        pack(model, tmp_path / "packed")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_not_overwritten(tmp_path):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="not empty"):
        pack(quantized("bert-binary"), tmp_path / "packed")
    assert (tmp_path / "packed" / "mine.txt").read_text() == "kept"
    pack(quantized("bert-binary"), tmp_path / "packed", overwrite=True)
    assert not (tmp_path / "packed" / "mine.txt").exists()


def test_bad_options_are_refused(tmp_path):
    model = quantized("bert-binary")
    with pytest.raises(ValueError, match="rest: expected one of float16, bfloat16, float32, got 'int3'"):
        pack(model, tmp_path / "packed", rest="int3")
    with pytest.raises(ValueError, match="embeddings: expected 'int8' or None"):
        pack(model, tmp_path / "packed", embeddings="int4")
    with pytest.raises(ValueError, match="expected a stage folder, and there is none"):
        pack(tmp_path / "nowhere", tmp_path / "packed")
    model.classifier.weight.data[0, 0] = 1e6
    with pytest.raises(ValueError, match="beyond float16's largest"):
        pack(model, tmp_path / "packed")
    pack(model, tmp_path / "packed", rest="bfloat16")
    with pytest.raises(ValueError, match="packed already"):
        pack(loaded(tmp_path / "packed"), tmp_path / "again")
    with pytest.raises(ValueError, match="packed already"):
        pack(tmp_path / "packed", tmp_path / "again")


def test_the_model_itself_stays_as_it_was(tmp_path):
    model = quantized("bert-split")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pack(model, tmp_path / "packed")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(isinstance(m, Quantized) and m.split for m in model.modules())


def test_rows_of_zeros_survive_splitting_and_packing(tmp_path):
    model = tiny.bert()
    model.bert.embeddings.word_embeddings.weight.data[0] = 0
    model = SplitTernary()(Ternarize()(model)).eval()
    pack(model, tmp_path / "packed", rest="float32")
    own, theirs = weights(model), weights(loaded(tmp_path / "packed"))
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def test_a_packed_looped_model_is_the_one_that_was_trained_at_any_depth(tmp_path):
    model = tiny.llama(num_hidden_layers=3)
    for transform in (MakeRecurrent(1, 1, 1, mean_depth=2), Ternarize(exclude="*.adapter")):
        model = transform(model)
    pack(model.eval(), tmp_path / "packed", rest="float32")
    packed = loaded(tmp_path / "packed", "llama")
    for depth in (1, 3, 9):
        with at_depth(model, depth), at_depth(packed, depth):
            torch.testing.assert_close(logits(packed), logits(model), rtol=1e-4, atol=1e-5)
