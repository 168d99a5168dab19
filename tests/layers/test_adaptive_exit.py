"""Tokens that leave a recurrent core before its last cycle."""

import pytest
import torch

from hf_stages.layers import at_depth, find_recurrence
from tests.support.recurrent import looped, tokens

RULES = {"kl": 3e-4, "change": 0.05, "gate": 0.9}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def leaving(rule: str, **options):
    """A model whose states settle, after different numbers of cycles."""
    model = looped(norm="pre", mean_depth=12.0, exit=rule, exit_threshold=RULES[rule], **options)
    core = find_recurrence(model)
    draw = torch.Generator().manual_seed(2)
    torch.nn.init.normal_(core.adapter.weight, std=0.07, generator=draw)
    for layer in core.layers:
        for parameter in layer.parameters():
            parameter.data.mul_(3 if parameter.dim() > 1 else 1)
    if core.gate is not None:
        torch.nn.init.normal_(core.gate.weight, std=0.3, generator=draw)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=1.0, generator=draw)
    torch.nn.init.normal_(model.lm_head.weight, std=0.2, generator=draw)
    return model


@pytest.mark.parametrize("rule", RULES)
def test_tokens_leave_after_different_numbers_of_cycles_with_the_same_logits_as_with_a_cache(rule):
    model, ids = leaving(rule), tokens(3, 8)
    core = find_recurrence(model)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cycles = core.last_cycles
        assert len(cycles.unique()) > 2
        assert cycles.min() < 12
        cache = model(ids[:, :4], use_cache=True).past_key_values
        for place in range(4, 8):
            step = model(ids[:, place : place + 1], past_key_values=cache).logits
            torch.testing.assert_close(step[:, 0], whole[:, place], atol=2e-5, rtol=1e-4)
            assert torch.equal(core.last_cycles[:, 0], cycles[:, place])
        assert {layer.get_seq_length() for layer in cache.layers} == {8}
        alone = torch.cat([model(ids[row : row + 1]).logits for row in range(3)])
    torch.testing.assert_close(alone, whole, atol=2e-5, rtol=1e-4)  # whichever rows are beside it


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
@pytest.mark.parametrize("rule", RULES)
def test_generate_gives_what_it_gives_without_a_cache(rule, options):
    model, ids = leaving(rule), tokens(2, 6)
    found = model.generate(ids, **GREEDY, **options)
    assert torch.equal(found, model.generate(ids, **GREEDY, **options, use_cache=False))


@pytest.mark.parametrize("rule", ["kl", "change"])
def test_a_tight_threshold_gives_the_logits_of_all_cycles_and_a_loose_one_those_of_few(rule):
    model, ids = leaving(rule), tokens()
    core = find_recurrence(model)
    with at_depth(model, 12):
        every = model(ids).logits
    core.exit = type(core.exit)(rule, 1e-30)
    torch.testing.assert_close(model(ids).logits, every, atol=1e-3, rtol=0)  # rounding may show no divergence
    core.exit = type(core.exit)(rule, 1e9)
    loose = model(ids).logits
    assert core.last_cycles.unique().tolist() == [2 if rule == "kl" else 1]
    with at_depth(model, 2 if rule == "kl" else 1):
        assert torch.equal(model(ids).logits, loose)


def test_a_fixed_depth_and_training_let_no_token_leave():
    model, ids = leaving("change"), tokens()
    core = find_recurrence(model)
    with at_depth(model, 12):
        model(ids)
        assert core.last_cycles is None
    model.train()(ids)
    assert core.last_cycles is None


def test_fewer_blocks_run_where_all_tokens_have_left():
    model, ids = leaving("change"), tokens()
    core, ran = find_recurrence(model), []
    core.layers[0].register_forward_hook(lambda *_: ran.append(1))
    model(ids)
    assert len(ran) == core.last_cycles.max().item() < 12


def test_a_kl_exit_refuses_a_cache_that_cannot_be_looked_into():
    with pytest.raises(ValueError, match="exit='kl' reads each state out beside a growing cache"):
        leaving("kl").generate(tokens(), **GREEDY, cache_implementation="static")
    model, ids = leaving("change"), tokens()
    found = model.generate(ids, **GREEDY, cache_implementation="static")
    assert torch.equal(found, model.generate(ids, **GREEDY))
