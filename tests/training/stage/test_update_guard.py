"""Updates judged on the device: the spikes that the pure function finds, and steps left out without a trace."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn

from hf_stages.gates import OnSpike
from hf_stages.gates.spike_window import find_spikes
from hf_stages.training.stage.update_guard import UpdateGuard

INF, NAN = float("inf"), float("nan")


def judged(guard: UpdateGuard, loss: float, norm: float = 1.0):
    guard.judge(torch.tensor(loss), torch.tensor(norm))
    return guard.hear(guard.unheard.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_what_the_pure_function_finds(seed):
    draw = random.Random(seed)
    values = [draw.gauss(3, 0.1) + (draw.random() < 0.04) * draw.uniform(0, 3) for _ in range(400)]
    values[200:300:30] = [NAN, INF, NAN, INF]
    guard = UpdateGuard(OnSpike(watch="loss"))
    found = [i for i, value in enumerate(values) if judged(guard, value).is_bad]
    assert found == find_spikes([torch.tensor(value).item() for value in values])
    assert any(value < 10 for value in (values[i] for i in found))


def test_an_update_is_bad_by_its_loss_or_its_gradient_and_says_by_how_much():
    guard = UpdateGuard(OnSpike(window=4))
    for value in (1.0, 3.0, 1.0, 3.0):
        assert not judged(guard, value, 2 * value).is_bad
    assert judged(guard, 2.0, 16.5).text == "grad_norm 16.5 is above 16"
    assert judged(guard, 8.5, 16.5).text == "loss 8.5 is above 8, grad_norm 16.5 is above 16"
    assert judged(guard, 2.0, NAN).text == "grad_norm is nan"
    assert judged(guard, -INF).text == "loss is -inf"
    assert judged(guard, 8.5).typical == 2.0
    assert not judged(guard, 8.0, 16.0).is_bad


def test_only_what_is_watched_is_a_spike_but_nothing_may_be_infinite():
    guard = UpdateGuard(OnSpike(window=4, watch="loss"))
    for _ in range(8):
        judged(guard, 1.0)
    assert not judged(guard, 1.0, 1e9).is_bad
    assert judged(guard, 1.0, INF).is_bad


def test_without_skips_a_spike_is_taken_and_told():
    guard = UpdateGuard(OnSpike(window=4, skip=0))
    for _ in range(8):
        judged(guard, 1.0)
    spike, nan = judged(guard, 9.0), judged(guard, NAN)
    assert (spike.is_bad, spike.was_skipped) == (True, False)
    assert (nan.is_bad, nan.was_skipped) == (True, True)


def test_what_is_not_finite_passes_where_the_gate_says_so_and_enters_no_window():
    guard = UpdateGuard(OnSpike(window=4, non_finite=False))
    for _ in range(8):
        judged(guard, 1.0)
    before = guard.windows.state_dict()
    assert not judged(guard, NAN, NAN).is_bad
    assert guard.windows.state_dict() == before


def test_it_goes_on_from_its_state():
    guard, copied = UpdateGuard(OnSpike(window=5)), UpdateGuard(OnSpike(window=5))
    for i in range(13):
        judged(guard, float(i % 3))
    guard.judge(torch.tensor(99.0), torch.tensor(1.0))
    copied.load_state_dict(guard.state_dict())
    assert copied.hear(copied.unheard.tolist()) == guard.hear(guard.unheard.tolist())
    for value in (0.5, 7.0, NAN, 1.5):
        assert str(judged(copied, value)) == str(judged(guard, value))


OPTIMIZERS = {
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "adagrad-fused": lambda p: torch.optim.Adagrad(p, lr=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, foreach=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("bad", [NAN, 50.0])
def test_a_step_that_is_left_out_leaves_no_trace(make, bad):
    """With a bad update among them, weights, moments and counts of steps are those of the good ones alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    twin = copy.deepcopy(model)
    guard = UpdateGuard(OnSpike(window=2))
    optimizers = [make(one.parameters()) for one in (model, twin)]
    for factor in (1.0, 1.0, 1.0, bad, 1.0):
        for one, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.zero_grad()
            one(torch.ones(1, 3)).sum().backward()
            if one is twin and factor != 1.0:
                continue
            for weight in one.parameters():
                weight.grad *= factor
            if one is model:
                guard.judge(torch.tensor(1.0), torch.tensor(factor))
                guard.leave_out(optimizer, sharded=False)
            optimizer.step()
    states = [optimizer.state_dict() for optimizer in optimizers]
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for index, moments in states[1]["state"].items():
        for name, value in moments.items():
            assert value is None or torch.equal(states[0]["state"][index][name], value), name


def test_running_statistics_of_a_skipped_update_are_taken_back():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    guard = UpdateGuard(OnSpike(window=2))
    for _ in range(3):
        guard.open_update(model)
        model(torch.randn(5, 3))
        judged(guard, 1.0)
    before = {name: value.clone() for name, value in model.named_buffers()}
    guard.open_update(model)
    model(torch.full((5, 3), NAN))
    judged(guard, NAN)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    guard.open_update(model)
    model(torch.randn(5, 3))
    judged(guard, 1.0)
    assert not any(torch.equal(value, before[name]) for name, value in model.named_buffers())
