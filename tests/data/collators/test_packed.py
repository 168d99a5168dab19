"""Packed rows against each example alone: losses, gradients, counts, layouts, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    BloomConfig,
    BloomForCausalLM,
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    MambaConfig,
    MambaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from hf_stages.core.curves import Linear
from hf_stages.data import Packed
from hf_stages.data.collators.bin_packing import assign_rows
from hf_stages.losses import TaskLoss
from hf_stages.losses.objective.update_sums import tokens_in_batch
from hf_stages.losses.target_logits import Targets
from hf_stages.models.real_tokens import real_tokens
from tests.support import tiny

SHAPE = {"vocab_size": tiny.VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"intermediate_size": 64, "max_position_embeddings": 64}
LENGTHS = [5, 9, 1, 12, 3, 7, 2]

MODELS = {
    "llama": (LlamaForCausalLM, tiny.llama_config()),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=tiny.VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE, num_key_value_heads=2)),
    "opt": (OPTForCausalLM, OPTConfig(**SHAPE, ffn_dim=64, word_embed_proj_dim=32)),
    "bert": (BertForMaskedLM, BertConfig(**SHAPE)),
    "roberta": (RobertaForMaskedLM, RobertaConfig(**SHAPE, pad_token_id=1)),
    "bert tokens": (BertForTokenClassification, BertConfig(**SHAPE, num_labels=5)),
    "llama tokens": (LlamaForTokenClassification, LlamaConfig(**SHAPE, num_labels=5)),
}


def model_of(name: str, attention: str = "sdpa"):
    kind, config = MODELS[name]
    config = type(config).from_dict(config.to_dict())
    config._attn_implementation, config.use_cache = attention, False  # as Trainer sets it
    torch.manual_seed(0)
    model = kind(config).eval()  # no dropout
    with torch.no_grad():  # as sharp as a trained model: a leak must show
        for parameter in model.parameters():
            parameter.mul_(5) if parameter.dim() > 1 else None
    return model


def rows_for(name: str) -> list[dict[str, list[int]]]:
    draw = torch.Generator().manual_seed(1)
    rows = []
    for n in LENGTHS:
        ids = torch.randint(3, tiny.VOCAB, (n,), generator=draw)
        top = 5 if "tokens" in name else tiny.VOCAB
        labels = torch.randint(top, (n,), generator=draw).where(torch.rand(n, generator=draw) < 0.6, -100)
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def gradients(model, batches) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss over all items, and its gradient, of TaskLoss's sum over batches."""
    loss = TaskLoss().for_models(model, None)
    items = sum(int(loss.items(batch)) for batch in batches)
    model.zero_grad()
    total = 0.0
    for batch in (b for b in batches if int(loss.items(b))):
        part = model(**batch).loss * loss.items(batch) / items
        part.backward()
        total += part.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "attention"), [(n, a) for n in MODELS for a in ("sdpa", "eager")])
def test_packed_is_each_example_alone(name: str, attention: str) -> None:
    model, rows = model_of(name, attention), rows_for(name)
    alone = [{key: torch.tensor([value]) for key, value in row.items()} for row in rows]
    collator = Packed(16).build(None, model)
    packed = collator(rows)
    assert packed["input_ids"].shape[0] < len(rows)
    assert (collator.mask == "positions") == (name in ("llama", "gpt2", "qwen2", "llama tokens"))
    loss, grads = gradients(model, alone)
    found, theirs = gradients(model, [packed])
    assert found == pytest.approx(loss, rel=1e-5)
    for key, grad in grads.items():
        torch.testing.assert_close(theirs[key], grad, rtol=1e-3, atol=2e-5 * float(grad.abs().max()) + 1e-7, msg=key)


def test_without_blocks_examples_would_leak() -> None:
    """What the test above can see: the same rows without positions give another loss."""
    model, rows = model_of("llama"), rows_for("llama")
    packed = Packed(16).build(None, model)(rows)
    right = gradients(model, [packed])[0]
    leaky = gradients(model, [{k: v for k, v in packed.items() if k != "position_ids"}])[0]
    assert abs(leaky - right) > 1e-3


def test_a_cache_would_hide_the_positions() -> None:
    """transformers makes no mask from positions where a cache is in use: the mask is then given."""
    model, rows = model_of("llama"), rows_for("llama")
    loss = gradients(model, [Packed(16).build(None, model)(rows)])[0]
    model.config.use_cache = True
    collator = Packed(16).build(None, model)
    assert collator.mask == "blocks"
    assert gradients(model, [collator(rows)])[0] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("mask", ["flat", "blocks"])
def test_other_ways_of_masking_say_the_same(mask: str) -> None:
    model, rows = model_of("llama"), rows_for("llama")
    one, other = (Packed(16, mask=m).build(None, model)(rows) for m in ("positions", mask))
    assert other["input_ids"].shape[0] == (1 if mask == "flat" else one["input_ids"].shape[0])
    assert gradients(model, [other])[0] == pytest.approx(gradients(model, [one])[0], rel=1e-5)


@pytest.mark.parametrize("mask", ["positions", "flat", "blocks", "additive"])
def test_padding_counts_as_none(mask: str) -> None:
    """``until: N tokens``, TaskLoss and distillation count what is real."""
    for lengths in (LENGTHS, [1, 1, 3], [1], [2, 1, 1]):
        rows = [{"input_ids": list(range(3, 3 + n))} for n in lengths]
        batch = Packed(12, shift=True, mask=mask)(rows)
        assert int(tokens_in_batch(batch)) == sum(lengths)
        assert int(TaskLoss(shift=True).items(batch)) == sum(n - 1 for n in lengths)
        before = Targets("next", on="tokens")._mask(batch)
        assert int(before.sum()) == sum(n - 1 for n in lengths)
        assert batch["input_ids"][real_tokens(batch)].sort().values.tolist() == sorted(
            i for r in rows for i in r["input_ids"]
        )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(20, 64))
def test_rows_hold_everything_once_and_are_few(lengths: list[int], capacity: int) -> None:
    rows = assign_rows(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in row) for row in rows) <= capacity
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // capacity) * 1.5 + 1
    assert rows == assign_rows(lengths, capacity)


def test_a_wrapped_collator_makes_inputs_and_labels() -> None:
    tokenizer = tiny.tokenizer()
    inner = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    rows = [{"input_ids": list(range(3, 3 + n)), "attention_mask": [1] * n} for n in LENGTHS]
    model = model_of("llama")
    wrapped, own = Packed(16, inner).build(tokenizer, model)(rows), Packed(16).build(tokenizer, model)(rows)
    assert wrapped.keys() == own.keys()
    for key in own:
        assert torch.equal(wrapped[key], own[key]), key


def test_longer_examples() -> None:
    rows = [{"input_ids": [3, 4, 5, 6, 7]}, {"input_ids": [8]}]
    made = {longer: Packed(2, longer=longer, shift=True, mask="positions") for longer in ("error", "split", "truncate")}
    with pytest.raises(ValueError, match=r"an example of 5 tokens is longer than length=2.*longer='split'"):
        made["error"](rows)
    split = made["split"](rows)
    assert split["input_ids"].tolist() == [[3, 4], [5, 6], [7, 8]]
    assert split["labels"].tolist() == [[-100, 4], [-100, 6], [-100, -100]]
    assert made["truncate"](rows)["input_ids"].tolist() == [[3, 4], [8, 0]]


def test_empty_examples() -> None:
    packed = Packed(4, shift=True, mask="positions")
    full = [{"input_ids": [3, 4]}]
    assert torch.equal(packed([*full, {"input_ids": []}])["input_ids"], packed(full)["input_ids"])
    with pytest.raises(ValueError, match="2 examples without a single token"):
        packed([{"input_ids": []}, {"input_ids": []}])


def test_length_follows_progress() -> None:
    packed = Packed(Linear(4, 8), shift=True, mask="positions", longer="split")
    rows = [{"input_ids": [3, 4, 5, 6, 7, 8, 9, 10]}]
    assert [packed.at(t)(rows)["input_ids"].shape[1] for t in (0.0, 0.5, 1.0, None)] == [4, 6, 8, 8]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"length": 0}, "length: expected a whole number"),
        ({"length": "long"}, "length: cannot read the curve 'long'"),
        ({"length": Linear(8, -1)}, "length: expected at least 1 token everywhere"),
        ({"length": 8, "longer": "drop"}, "longer: expected one of error, split, truncate"),
        ({"length": 8, "mask": "none"}, "mask: expected one of"),
    ],
)
def test_bad_arguments(arguments, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Packed(**arguments)


def test_bad_rows_and_models() -> None:
    packed = Packed(8, shift=True, mask="positions")
    with pytest.raises(ValueError, match="labels: expected one value per token, got one per example"):
        packed([{"input_ids": [3, 4], "labels": 1}])
    with pytest.raises(ValueError, match="expected rows with input_ids, got text"):
        packed([{"text": "a"}])
    with pytest.raises(ValueError, match="it has not met its model"):
        Packed(8)([{"input_ids": [3]}])
    with pytest.raises(ValueError, match="it packs already"):
        Packed(8, Packed(8, shift=True, mask="blocks"), shift=True, mask="positions")([{"input_ids": [3]}])
    with pytest.raises(ValueError, match="encoder with a decoder"):
        Packed(8).build(None, tiny.t5())
    mamba = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2))
    bloom = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))
    for model in (mamba, bloom):
        with pytest.raises(ValueError, match="one packed example sees another"):
            Packed(8).build(None, model)
    modern = ModernBertForMaskedLM(ModernBertConfig(**SHAPE, pad_token_id=0, local_attention=16))
    assert Packed(8).build(None, modern).mask in ("blocks", "additive")
    with pytest.raises(ValueError, match="layers that see 8 tokens far"):
        Packed(32).build(None, modern)
