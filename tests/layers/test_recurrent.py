"""A recurrent core by itself: depths, states, gradients, memory."""

import copy
import weakref

import pytest
import torch

from hf_stages.core.micro_batch import MicroBatch, in_micro_batch
from hf_stages.layers import at_depth, carrying_states, find_recurrence, set_depth
from hf_stages.transforms import MakeRecurrent
from tests.support import tiny
from tests.support.recurrent import looped, tokens


def test_a_plain_model_has_no_core_and_one_depth():
    model = tiny.llama()
    assert find_recurrence(model) is None
    with pytest.raises(ValueError, match="at_depth: LlamaForCausalLM has no recurrent core"), at_depth(model, 4):
        pass


def test_each_depth_gives_other_logits_and_the_same_ones_again():
    model, ids = looped(), tokens()
    found = {}
    for depth in (1, 2, 4, 2):
        with at_depth(model, depth):
            found.setdefault(depth, []).append(model(ids).logits)
    assert torch.equal(*found[2])
    assert not torch.allclose(found[1][0], found[2][0])
    assert not torch.allclose(found[2][0], found[4][0])


def test_a_depth_is_what_the_blocks_give_when_they_are_written_out():
    model, ids = looped(state_init="zeros"), tokens()
    core, layers = find_recurrence(model), model.model.layers
    rotary = model.model.rotary_emb(torch.zeros(1), torch.arange(ids.shape[1])[None])
    mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)[None, None]
    given = layers[0](model.model.embed_tokens(ids), attention_mask=mask, position_embeddings=rotary)
    state = torch.zeros_like(given)
    for _ in range(3):
        state = core.adapter(torch.cat((state, given), -1))
        for layer in core.layers:
            state = layer(state, attention_mask=mask, position_embeddings=rotary)
    logits = model.lm_head(model.model.norm(layers[2](state, attention_mask=mask, position_embeddings=rotary)))
    with at_depth(model, 3):
        torch.testing.assert_close(model(ids).logits, logits)


def test_depth_is_fixed_within_at_depth_in_training_mode_too():
    model, ids = looped(), tokens()
    model.train()
    with at_depth(model, 3) as core:
        assert torch.equal(model(ids).logits, model(ids).logits)
        assert core.last_depth == 3
        before, after = core.last_states
        assert before.shape == after.shape == (2, ids.shape[1], 32)
        assert not torch.equal(before, after)
    assert core.last_states is None
    assert core.depth == 4


def test_carried_states_give_the_logits_of_each_depth():
    model, ids = looped(), tokens()
    expected = []
    for depth in (1, 3, 5):
        with at_depth(model, depth):
            expected.append(model(ids).logits)
    ran = []
    find_recurrence(model).layers[0].register_forward_hook(lambda *_: ran.append(1))
    with carrying_states(model):
        for depth, logits in zip((1, 3, 5), expected, strict=True):
            with at_depth(model, depth):
                assert torch.equal(model(ids).logits, logits)
        assert len(ran) == 5
        with at_depth(model, 6):  # of another batch nothing is carried
            other = model(ids.flip(0)).logits
        assert len(ran) == 11
    with at_depth(model, 6):
        assert torch.equal(model(ids.flip(0)).logits, other)


def test_nothing_is_carried_where_other_tokens_are_hidden():
    """Without a prelude, a mask changes nothing of what enters the core."""
    model, ids = (
        MakeRecurrent(0, 3, 1, mean_depth=4.0, state_init="input")(tiny.llama(num_hidden_layers=4)).eval(),
        tokens(),
    )
    torch.nn.init.normal_(find_recurrence(model).adapter.weight, std=0.15, generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[:, :3] = 0
    positions = torch.arange(ids.shape[1])[None]
    with torch.no_grad(), at_depth(model, 5):
        expected = model(ids, attention_mask=mask, position_ids=positions).logits
    with torch.no_grad(), carrying_states(model):
        with at_depth(model, 2):
            model(ids, position_ids=positions)
        with at_depth(model, 5):
            assert torch.equal(model(ids, attention_mask=mask, position_ids=positions).logits, expected)


def test_a_depth_is_not_set_for_good_within_a_block_that_sets_it_for_a_while():
    model = looped()
    with at_depth(model, 6), pytest.raises(ValueError, match=r"set_depth: expected to be called outside of at_depth"):
        set_depth(model, 9)
    set_depth(model, 9)
    assert find_recurrence(model).depth == 9


def test_a_micro_batch_draws_the_same_depth_and_state_again_and_another_one_draws_others():
    model, ids = looped(mean_depth=8.0), tokens()
    core = find_recurrence(model.train())

    def run(*place):
        with in_micro_batch(MicroBatch(*place)):
            return model(ids).logits, core.last_depth

    first, depth = run(0, 5, 1)
    torch.rand(100)
    again, same = run(0, 5, 1)
    assert torch.equal(first, again)
    assert depth == same
    assert len({run(0, step, number)[1] for step in range(6) for number in range(2)}) > 4


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_truncated_gradients_equal_full_ones_where_all_cycles_are_within_reach(depth):
    gradients = []
    for backprop in (8, 10_000):
        model = looped(backprop=backprop)
        with at_depth(model, depth):
            model(tokens(), labels=tokens()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


def test_gradients_stop_before_the_last_cycles_and_reach_every_parameter():
    full, cut = ({}, {})
    for found, backprop in ((full, 100), (cut, 2)):
        model = looped(backprop=backprop)
        with at_depth(model, 6):
            model(tokens(), labels=tokens()).loss.backward()
        found |= {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.abs().sum() > 0 for g in cut.values())
    assert not torch.allclose(
        full["model.layers.1.layers.0.mlp.up_proj.weight"], cut["model.layers.1.layers.0.mlp.up_proj.weight"]
    )


def test_mixed_precision_does_not_lose_gradients_to_weights_that_were_cast_without_a_graph():
    model = looped(backprop=1)
    with at_depth(model, 4), torch.autocast("cpu", torch.bfloat16):
        model(tokens(), labels=tokens()).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_activation_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointed in (False, True):
        model = looped(mean_depth=6.0, backprop=3).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        with in_micro_batch(MicroBatch(0, 3, 0)):
            model(tokens(), labels=tokens()).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_what_backward_keeps_does_not_grow_beyond_the_last_cycles():
    def kept(depth):
        model, sizes = looped(backprop=2).train(), []
        pack = lambda tensor: sizes.append(tensor.numel()) or tensor  # noqa: E731
        with at_depth(model, depth), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(tokens(), labels=tokens())
        return sum(sizes)

    assert kept(1) < kept(2) == kept(4) == kept(16)


def test_evaluation_keeps_no_more_states_at_a_greater_depth():
    model, states, alive = looped(), [], []

    def count(module, args, output):
        states.append(weakref.ref(output))
        alive.append(sum(state() is not None for state in states))

    find_recurrence(model).layers[-1].register_forward_hook(count)
    with at_depth(model, 16), torch.no_grad():
        model(tokens(), use_cache=False)
    assert len(alive) == 16
    assert max(alive) <= 3


def test_a_copy_runs_at_a_depth_of_its_own():
    model, ids = looped(), tokens()
    other = copy.deepcopy(model)
    set_depth(other, 9)
    assert find_recurrence(model).depth == 4
    assert model.config.num_hidden_layers == 10
    assert other.config.num_hidden_layers == 20
    assert not torch.allclose(model(ids).logits, other(ids).logits)


@pytest.mark.parametrize("depth", [0, -1, 2.5, True])
def test_a_depth_that_is_no_number_of_cycles_is_refused(depth):
    with pytest.raises(ValueError, match="expected a whole number of cycles"):
        set_depth(looped(), depth)
