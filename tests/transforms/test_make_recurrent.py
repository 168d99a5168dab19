from __future__ import annotations

import copy
import pickle

import pytest
import torch
import transformers as tf

from hf_stages.core.curves import Linear
from hf_stages.layers import find_recurrence, set_depth
from hf_stages.recipes import loads, part_from_dict
from hf_stages.recipes.files import to_dict
from hf_stages.transforms import (
    AddLora,
    InsertSubLN,
    MakeRecurrent,
    MergeLora,
    ReduceLayers,
    ReduceWidth,
    ResizeVocab,
    SetRecurrence,
    SetTask,
)
from tests.support import tiny
from tests.support.recurrent import looped, tokens

SIZES = {**tiny.LLAMA_SIZES, "num_hidden_layers": 4, "head_dim": 8, "pad_token_id": 0}


def llama():
    return tiny.llama(num_hidden_layers=4).eval()


@pytest.mark.parametrize("parts", [(1, 2, 1), (0, 4, 0), (0, 1, 3), (3, 1, 0)])
def test_a_pretrained_model_computes_the_same_at_every_depth_at_first(parts):
    ids, before = tokens(), llama()(tokens()).logits
    transform = MakeRecurrent(*parts, norm="pre", mean_depth=3)
    model = transform(llama())
    assert transform.keeps_function is True
    for depth in (1, 3, 8):
        set_depth(model, depth)
        torch.testing.assert_close(model(ids).logits, before)


def test_an_added_input_keeps_the_function_at_one_cycle_from_zeros_alone():
    ids, before = tokens(), llama()(tokens()).logits
    once = MakeRecurrent(1, 2, 1, norm="pre", adapter="add", state_init="zeros", depth=1)
    assert once.keeps_function is True
    torch.testing.assert_close(once(llama())(ids).logits, before)
    for options in ({"depth": 2}, {"depth": 1, "norm": "sandwich"}, {"depth": 1, "state_init": "normal"}):
        other = MakeRecurrent(1, 2, 1, **{"norm": "pre", "adapter": "add", "state_init": "zeros", **options})
        assert other.keeps_function is False
        assert not torch.allclose(other(llama())(ids).logits, before)


def test_an_adapter_that_starts_with_the_sum_computes_what_adding_does():
    ids = tokens()
    added = MakeRecurrent(1, 2, 1, norm="pre", adapter="add")(llama())
    summed = MakeRecurrent(1, 2, 1, norm="pre", adapter_start="sum")
    assert summed.keeps_function is False
    model = summed(llama())
    for depth in (1, 4):
        set_depth(model, depth)
        set_depth(added, depth)
        torch.testing.assert_close(model(ids).logits, added(ids).logits)


def test_each_parameter_takes_its_moments_along():
    before = dict(llama().named_parameters())
    transform = MakeRecurrent(1, 2, 1)
    after = dict(transform(llama()).named_parameters())
    moves = transform.moves(list(before), list(after))
    assert moves.keys() == before.keys()
    assert all(torch.equal(before[old], after[new]) for old, (new,) in moves.items())
    new = set(after) - {name for (name,) in moves.values()}
    places = ("0", "1.layers.0", "1.layers.1", "2")
    norms = {f"model.layers.{place}.{part}_sum_norm.weight" for place in places for part in ("attention", "block")}
    assert new == {"model.layers.1.adapter.weight"} | norms


def test_norms_without_gains_have_no_parameters_in_the_blocks():
    model = looped(norm="sandwich", learned_norms=False, adapter="add")
    names = [name for name, _ in model.named_parameters() if "norm" in name]
    assert names == ["model.norm.weight"]
    assert find_recurrence(model).adapter is None
    assert model(tokens()).logits.isfinite().all()


def test_sandwich_norms_hold_the_size_of_a_state_over_many_cycles():
    sizes = {}
    for norm in ("sandwich", "pre"):
        model = looped(norm=norm)
        torch.nn.init.normal_(
            find_recurrence(model).adapter.weight, std=0.6, generator=torch.Generator().manual_seed(0)
        )
        for depth in (8, 64):
            set_depth(model, depth)
            states = []
            find_recurrence(model).register_forward_hook(lambda m, a, out, kept=states: kept.append(out))
            model(tokens())
            sizes[norm, depth] = states[-1].pow(2).mean().sqrt().item()
    assert sizes["sandwich", 8] == pytest.approx(1.0, abs=0.05)
    assert sizes["sandwich", 64] == pytest.approx(1.0, abs=0.05)
    assert sizes["pre", 64] > 100 * sizes["pre", 8]


@pytest.mark.parametrize("norm", ["sandwich", "pre"])
def test_a_recurrent_model_is_copied_and_pickled(norm):
    model = looped(norm=norm, exit="kl")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(tokens()).logits, model(tokens()).logits)
        assert find_recurrence(other).read_out.model is other


@pytest.mark.parametrize(
    "build",
    [
        lambda: tf.Qwen3MoeForCausalLM(
            tf.Qwen3MoeConfig(**SIZES, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16)
        ),
        lambda: tf.SmolLM3ForCausalLM(tf.SmolLM3Config(**SIZES)),
    ],
    ids=["qwen3_moe", "smollm3"],
)
def test_other_decoders_of_such_blocks_become_recurrent(build):
    model, ids = looped(build()), tokens()
    how = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **how), model.generate(ids, **how, use_cache=False))


def gpt2():
    return tf.GPT2LMHeadModel(tf.GPT2Config(n_layer=4, n_embd=32, n_head=2, vocab_size=64))


def sliding_qwen2():
    return tf.Qwen2ForCausalLM(tf.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (gpt2, "are GPT2Block; expected a decoder"),
        (lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**SIZES)), "Gemma2DecoderLayer"),
        (lambda: tf.GraniteForCausalLM(tf.GraniteConfig(**SIZES)), "GraniteDecoderLayer"),
        (lambda: tf.Olmo2ForCausalLM(tf.Olmo2Config(**SIZES)), "Olmo2DecoderLayer"),
        (lambda: tiny.bert(num_hidden_layers=4), "BertLayer"),
        (tiny.t5, r"has 2 stacks of blocks \(encoder, decoder\)"),
        (sliding_qwen2, "its layers attend in several ways"),
        (lambda: torch.nn.Linear(2, 2), "expected a transformers model, got a Linear"),
        (lambda: tiny.llama(), "has 2 blocks; expected prelude .* got 1 . 2 . 1 = 4. To drop blocks, put ReduceLayers"),
        (looped, "has a recurrent core already; SetRecurrence changes its depth"),
        (lambda: AddLora(r=2)(llama()), "expected a model without adapters"),
    ],
)  # fmt: skip
def test_a_model_of_another_layout_is_refused(build, message):
    with pytest.raises(ValueError, match=f"MakeRecurrent: .*{message}"):
        MakeRecurrent(1, 2, 1)(build())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"core": 0}, "core: expected a whole number, 1 or more, got 0"),
        ({"prelude": -1}, "prelude: expected a whole number, 0 or more, got -1"),
        ({"adapter": "gate"}, "adapter: expected 'concat' or 'add', got 'gate'"),
        ({"adapter": "add", "adapter_start": "sum"}, "adapter_start: it needs adapter='concat'"),
        ({"norm": "post"}, "norm: expected 'sandwich' or 'pre', got 'post'"),
        ({"state_init": "ones"}, "state_init: expected 'normal' or 'zeros' or 'input'"),
        ({"mean_depth": Linear(4, -1)}, "mean_depth: expected 0 or more"),
        ({"mean_depth": "deep"}, "mean_depth"),
        ({"backprop": 0}, "backprop: expected a whole number, 1 or more, got 0"),
        ({"depth": 0}, "depth: expected a whole number, 1 or more, got 0"),
        ({"exit": "early"}, "exit: expected 'kl', 'change', 'gate' or None, got 'early'"),
        ({"exit": "kl", "exit_threshold": 0.0}, "exit_threshold: expected more than 0"),
        ({"exit_threshold": 0.1}, "exit_threshold: it needs exit="),
    ],
)
def test_a_wrong_argument_is_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=f"MakeRecurrent: {message}"):
        MakeRecurrent(**{"prelude": 1, "core": 2, "coda": 1, **options})


def test_what_counts_layers_is_refused_after_it():
    for transform in (ReduceLayers([1, 2]), ReduceWidth(0.5)):
        with pytest.raises(ValueError, match=r"has a recurrent core.* before MakeRecurrent"):
            transform(looped())
    with pytest.raises(ValueError, match="SetRecurrence: LlamaForCausalLM has no recurrent core; put MakeRecurrent"):
        SetRecurrence(depth=4)(llama())
    with pytest.raises(ValueError, match="SetRecurrence: expected mean_depth=, depth= or backprop="):
        SetRecurrence()
    with pytest.raises(ValueError, match=r"exit='kl': .* has no output head"):
        MakeRecurrent(1, 2, 1, exit="kl")(SetTask("AutoModelForSequenceClassification")(llama()))


def test_layers_are_dropped_before_it_and_width_after_sizes_are_known():
    model = ReduceLayers([1, 2, 4])(llama())
    assert MakeRecurrent(1, 1, 1, mean_depth=5)(model).config.num_hidden_layers == 3 + 4


@pytest.mark.parametrize(
    "transform", [InsertSubLN(), ResizeVocab(80), SetTask("AutoModelForSequenceClassification", num_labels=3)]
)
def test_what_changes_no_blocks_count_works_after_it_and_is_saved(transform, tmp_path):
    model = transform(looped(norm="sandwich", depth=6)).eval()
    core = find_recurrence(model)
    assert core.depth == 6
    assert core.config is model.config
    assert core.read_out.model is model
    model.save_pretrained(tmp_path)
    auto = tf.AutoModelForSequenceClassification if isinstance(transform, SetTask) else tf.AutoModelForCausalLM
    assert torch.equal(auto.from_pretrained(tmp_path).eval()(tokens()).logits, model(tokens()).logits)


def test_adapters_on_looped_blocks_are_merged_into_what_they_computed():
    model = AddLora(r=2, target_modules=["q_proj", "up_proj"])(looped())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    before = model(tokens()).logits
    torch.testing.assert_close(MergeLora()(model)(tokens()).logits, before, atol=1e-5, rtol=1e-4)


def test_a_later_depth_is_kept_in_the_saved_model(tmp_path):
    model = SetRecurrence(mean_depth=Linear(2, 9), backprop=3)(looped())
    assert find_recurrence(model).depth == 9
    SetRecurrence(mean_depth=Linear(2, 9)).at(model, 0.5)
    assert find_recurrence(model).mean_depth == 5.5
    model.save_pretrained(tmp_path)
    core = find_recurrence(tf.AutoModelForCausalLM.from_pretrained(tmp_path))
    assert (core.depth, core.mean_depth, core.backprop) == (9, 9.0, 3)


def test_it_is_written_and_read_as_yaml():
    text = """
    stages:
    - name: looped
      until: 2 steps
      transforms:
      - {use: MakeRecurrent, prelude: 1, core: 2, coda: 1, mean_depth: {use: Linear, start: 2, end: 8}, exit: kl}
    """
    recipe = loads(text)
    transform = recipe.stages[0].transforms[0]
    assert transform == MakeRecurrent(1, 2, 1, mean_depth=Linear(2, 8), exit="kl")
    assert part_from_dict(to_dict(recipe)["stages"][0]["transforms"][0], "transforms") == transform
