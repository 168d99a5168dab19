"""Losses on attention equal those of what an eager run puts into its softmax, and of scores made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from hf_stages import MakeRecurrent
from hf_stages.losses import AttentionKL, AttentionMSE, AttentionRelation
from hf_stages.models.attention_scores import scores, visible
from hf_stages.models.capture import Capture
from hf_stages.models.model_inputs import model_inputs
from tests.losses import outside_trainer
from tests.support import tiny

MODELS = {
    "bert": (outside_trainer.bert, outside_trainer.text(), None),
    "bert-left": (outside_trainer.bert, outside_trainer.text(left=True), None),
    "bert-whole": (outside_trainer.bert, outside_trainer.text(padded=False, masked=False), None),
    "llama": (tiny.llama, outside_trainer.text(padded=False, masked=False), None),
    "llama-right": (tiny.llama, outside_trainer.text(), None),
    "llama-left": (tiny.llama, outside_trainer.text(left=True), None),
    "vit": (tiny.vit, outside_trainer.images(), None),
    "mistral": (outside_trainer.sliding, outside_trainer.text(padded=False, masked=False), None),
    "mistral-right": (outside_trainer.sliding, outside_trainer.text(), None),
    "gemma2": (outside_trainer.capped, outside_trainer.text(), None),
    "gemma2-whole": (outside_trainer.capped, outside_trainer.text(padded=False, masked=False), None),
    "t5-encoder": (outside_trainer.t5, outside_trainer.pairs_of_text(), "encoder"),
    "t5-decoder": (outside_trainer.t5, outside_trainer.pairs_of_text(), "decoder"),
}
PAIRS = [(1, 2), (2, 4)]
each_model = pytest.mark.parametrize("name", MODELS)
each_way = pytest.mark.parametrize("way", ["sdpa", "eager"])


def _models(name, way="sdpa"):
    build, batch, stack = MODELS[name]
    student, teacher = (model.eval() for model in outside_trainer.two(build))
    if not name.startswith("gemma2"):  # it has no SDPA
        student.set_attn_implementation(way), teacher.set_attn_implementation(way)
    return student, teacher, batch, stack


def _scores(model, batch, stack):
    """By layer, from 1: scores before the softmax and which of them are seen."""
    found = outside_trainer.scores_of(model, batch)
    if stack is not None:
        layers = model.config.num_layers  # the encoder's, then self and cross attention of each decoder layer
        found = found[:layers] if stack == "encoder" else found[layers::2]
    return {i: (values, values > -1e30) for i, values in enumerate(found, 1)}


def _mean_over_tokens(per_query, batch, stack):
    mask = batch["labels"].ne(-100) if stack == "decoder" else batch.get("attention_mask")
    mask = torch.ones(per_query.shape) if mask is None else mask.float()
    return (per_query * mask).sum() / mask.sum()


def _reference(name, student, teacher, per_pair, pairs=PAIRS):
    _, batch, stack = MODELS[name]
    mine, theirs = _scores(student, batch, stack), _scores(teacher, batch, stack)
    return sum(_mean_over_tokens(per_pair(mine[s], theirs[t]).mean(1), batch, stack) for s, t in pairs)


def _squares(mine, theirs):
    both = mine[1] & theirs[1]
    return torch.where(both, mine[0] - theirs[0], 0.0).pow(2).sum(-1) / both.sum(-1).clamp(min=1)


def _kl(mine, theirs):
    both = mine[1] & theirs[1]
    p, q = (values.masked_fill(~both, -1e9).log_softmax(-1) for values in (theirs[0], mine[0]))
    return torch.where(both, p.exp() * (p - q), 0.0).sum(-1)


@each_way
@each_model
def test_mse_equals_that_of_an_eager_runs_scores(name, way):
    student, teacher, batch, stack = _models(name, way)
    found = outside_trainer.value(AttentionMSE(stack=stack), student, teacher, batch)
    wanted = _reference(name, student, teacher, _squares)
    assert wanted > 1e-4
    torch.testing.assert_close(found, wanted)
    _same_gradient(student, found, wanted)


@each_model
def test_kl_equals_that_of_an_eager_runs_attention(name):
    student, teacher, batch, stack = _models(name)
    found = outside_trainer.value(AttentionKL(stack=stack), student, teacher, batch)
    wanted = _reference(name, student, teacher, _kl)
    assert wanted > 1e-6
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    _same_gradient(student, found, wanted)


def _same_gradient(student, found, wanted):
    """Two ways to one value have one gradient: nothing was cut off the graph."""
    parameters = list(student.parameters())
    both = [torch.autograd.grad(v, parameters, materialize_grads=True, allow_unused=True) for v in (found, wanted)]
    mine, theirs = (torch.cat([g.flatten() for g in grads]) for grads in both)
    assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_kl_counts_only_keys_that_both_see():
    """A student in a window learns of a teacher without one over what both see."""
    student, teacher = outside_trainer.sliding().eval(), outside_trainer.sliding(seed=1, sliding_window=None).eval()
    batch = outside_trainer.text()
    found = outside_trainer.value(AttentionKL({2: 2}), student, teacher, batch)
    mine, theirs = _scores(student, batch, None)[2], _scores(teacher, batch, None)[2]
    assert (mine[1] != theirs[1]).any()
    torch.testing.assert_close(found, _mean_over_tokens(_kl(mine, theirs).mean(1), batch, None), rtol=1e-4, atol=1e-7)


# ---- by hand --------------------------------------------------------------------------------------------------------


def _split(states, heads):
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def _by_hand(model, batch):
    """Queries, keys and values of the first layer from the states that enter it."""
    if isinstance(model, type(tiny.llama())):
        states = model.model.embed_tokens(batch["input_ids"])
        attention, states = model.model.layers[0].self_attn, model.model.layers[0].input_layernorm(states)
        queries, keys, values = (
            getattr(attention, f"{x}_proj")(states).unflatten(-1, (-1, 8)).transpose(1, 2) for x in "qkv"
        )
        places = torch.arange(states.shape[1])[None]
        return *apply_rotary_pos_emb(queries, keys, *model.model.rotary_emb(states, places)), values
    block = model.bert.encoder.layer[0] if hasattr(model, "bert") else None
    if block is not None:
        states, attention = model.bert.embeddings(batch["input_ids"]), block.attention.self
        return tuple(_split(getattr(attention, x)(states), 4) for x in ("query", "key", "value"))
    seen_by = []
    block = model.vit.layers[0] if hasattr(model.vit, "layers") else model.vit.encoder.layer[0]
    handle = block.register_forward_pre_hook(lambda m, args: seen_by.append(args[0]))
    model(**batch)
    handle.remove()
    maps = {n.rpartition(".")[2]: m for n, m in block.named_modules()}
    states = maps["layernorm_before"](seen_by[0])
    names = ("query", "key", "value") if "query" in maps else ("q_proj", "k_proj", "v_proj")
    return tuple(_split(maps[n](states), 4) for n in names)


@each_way
@pytest.mark.parametrize("name", ["bert", "bert-left", "llama", "llama-right", "vit"])
def test_captured_scores_equal_those_made_by_hand(name, way):
    model, _, batch, _ = _models(name, way)
    queries, keys, values = _by_hand(model, batch)
    capture = Capture(model, frozenset({"attention.1"}))
    with capture.collecting() as captured:
        model(**batch)
    capture.remove()
    found = captured["attention.1"]
    shared = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    torch.testing.assert_close(scores(found), queries @ shared.transpose(2, 3) / 8**0.5)
    torch.testing.assert_close(found.value, values)
    rows = (
        torch.ones(3, queries.shape[2], dtype=torch.bool)
        if name in ("llama", "vit")
        else batch["attention_mask"].bool()
    )
    sees = rows[:, None, None, :].expand(-1, 1, queries.shape[2], -1)
    sees = sees.tril() if name.startswith("llama") else sees
    assert torch.equal(torch.ones_like(sees) if visible(found) is None else visible(found).expand_as(sees), sees)


def test_minus_is_subtracted_in_the_same_product():
    for name in ("llama-right", "gemma2", "t5-encoder"):
        model, _, batch, stack = _models(name)
        key = "attention.1" if stack is None else f"{stack}.attention.1"
        capture = Capture(model, frozenset({key}))
        with capture.collecting() as captured:
            model(**model_inputs(model, batch))
        capture.remove()
        plain = scores(captured[key])
        other = torch.randn(plain.shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(scores(captured[key], minus=other), plain - other)


# ---- relations ------------------------------------------------------------------------------------------------------


def _relations(mine, theirs, heads, form, temperature, mask):
    def shares(states):
        parts = states.transpose(1, 2).flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2)
        lengths = (parts.pow(2).sum(-1, keepdim=True) + 1e-24).sqrt()  # padding of Llama is zero
        parts = parts / lengths if form == "cosine" else parts / parts.shape[-1] ** 0.25
        products = torch.einsum("bhqd,bhkd->bhqk", parts, parts) / temperature
        return products.masked_fill(mask[:, None, None] == 0, -torch.inf).softmax(-1)

    p, q = shares(theirs), shares(mine)
    kl = torch.where(p > 0, p * (p.clamp(min=1e-30) / q.clamp(min=1e-30)).log(), 0.0).sum(-1).mean(1)
    return (kl * mask).sum() / mask.sum()


@pytest.mark.parametrize(
    ("relations", "form", "temperature", "heads", "way"),
    [("QKV", "scaled", 1.0, None, "sdpa"), ("V", "cosine", 0.5, 1, "eager"), ("KQ", "scaled", 3.0, 8, "sdpa")],
)
@pytest.mark.parametrize("name", ["bert-left", "llama-right", "vit"])
def test_relations_equal_those_made_by_hand(name, relations, form, temperature, heads, way):
    build, batch, _ = MODELS[name]
    wide = {"hidden_size": 48} if name != "llama-right" else {"num_attention_heads": 8, "head_dim": 8}
    student, teacher = build(seed=0).eval(), build(seed=1, **wide).eval()
    for model in (student, teacher):
        model.set_attn_implementation(way)
    if name == "llama-right":  # by hand they have heads of 8
        assert teacher.config.head_dim == 8
    loss = AttentionRelation(relations, {1: 1}, heads=heads, form=form, temperature=temperature)
    found = outside_trainer.value(loss, student, teacher, batch)
    mine, theirs = (dict(zip("QKV", _by_hand(m, batch), strict=True)) for m in (student, teacher))
    count = heads or (2 if name == "llama-right" else 4)
    mask = (
        batch["attention_mask"].float()
        if "attention_mask" in batch
        else torch.ones(mine["Q"].shape[0], mine["Q"].shape[2])
    )
    wanted = sum(_relations(mine[x], theirs[x], count, form, temperature, mask) for x in relations)
    assert wanted > 1e-6
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    _same_gradient(student, found, wanted)


def test_relations_are_of_the_last_layer_unless_said():
    student, teacher = outside_trainer.two(tiny.llama)
    assert AttentionRelation().for_models(student, teacher).pairs == ((2, 4),)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_cut_of_the_relation_heads_is_refused_before_a_forward():
    student, teacher = outside_trainer.bert(), outside_trainer.bert(hidden_size=48)
    with pytest.raises(ValueError, match="the student's 4 heads of 8 cannot be cut into 5"):
        AttentionRelation(heads=5).for_models(student, teacher)
    with pytest.raises(ValueError, match="the student's 4 heads of 8 cannot be cut into 24"):
        AttentionRelation(heads=24).for_models(student, teacher)
    grouped = tiny.llama(hidden_size=48, num_attention_heads=4, head_dim=12)
    with pytest.raises(ValueError, match="the teacher's 2 heads of 12 cannot be cut into 16"):
        AttentionRelation("V", heads=16).for_models(tiny.llama(), grouped)


def test_heads_that_differ_are_refused_by_name():
    with pytest.raises(ValueError, match="the student has 4 attention heads, the teacher 2; use AttentionRelation"):
        AttentionKL().for_models(outside_trainer.bert(), outside_trainer.bert(num_attention_heads=2))


@pytest.mark.parametrize("loss", [AttentionKL(layers={2: 2}), AttentionRelation(layers={2: 2})])
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_recurrent_core_has_no_attention_of_its_own_to_compare(loss, whose):
    plain, looped = tiny.llama(num_hidden_layers=4), MakeRecurrent(1, 2, 1)(tiny.llama(num_hidden_layers=4))
    models = (looped, plain) if whose == "student" else (plain, looped)
    with pytest.raises(ValueError, match=f"the {whose}'s layer 2 is a recurrent core"):
        loss.for_models(*models)
    outside = {1: 1} if whose == "student" else {4: 3}
    assert replace(loss, layers=outside).for_models(*models).pairs == tuple(outside.items())
