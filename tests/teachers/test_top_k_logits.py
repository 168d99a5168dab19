"""Logits kept as the largest k: what is exact, and what the tail costs at most."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import log_softmax

from hf_stages.teachers.top_k_logits import UnpackLogits, encode_top_k, pack_logits


def given_back(logits: torch.Tensor, k: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    parts = encode_top_k(logits, k, dtype)
    return UnpackLogits(logits.shape[-1])(pack_logits(parts["value"], parts["index"], parts["rest"]))


def logits(spread: float, classes: int = 50) -> torch.Tensor:
    return spread * torch.randn(40, classes, generator=torch.Generator().manual_seed(0))


def test_the_largest_k_are_exact_and_the_mass_is_whole():
    true = logits(3.0)
    found = given_back(true, 5)
    kept, index = true.topk(5)
    torch.testing.assert_close(found.gather(-1, index), kept)
    torch.testing.assert_close(found.logsumexp(-1), true.logsumexp(-1))
    tail = 1 - true.softmax(-1).gather(-1, index).sum(-1)
    rest = found.softmax(-1).scatter(-1, index, 0.0)
    torch.testing.assert_close(rest.sum(-1), tail, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(rest.max(-1).values, tail / 45, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(encode_top_k(true, 5, torch.float32)["kept"], 1 - tail)


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_the_gradient_is_off_by_twice_the_tail_at_most(spread, temperature):
    true = logits(spread)
    found = given_back(true, 5)
    index = true.topk(5).indices
    p, q = (x.div(temperature).softmax(-1) for x in (true, found))
    tail = max(1.0, temperature)  # at T < 1 the tail at 1 is an upper bound
    tail_mass = found.div(tail).softmax(-1).scatter(-1, index, 0.0).sum(-1)
    off = (p - q).abs().sum(-1)
    assert (off <= 2 * tail_mass + 1e-6).all()
    if spread > 1:
        assert off.max() > 0.2 * tail_mass.max()  # a bound worth the name


@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_the_value_is_off_by_no_more_than_stated(spread):
    true, student = logits(spread), log_softmax(logits(2.0).flip(0), -1)
    found = given_back(true, 5)
    outside = torch.ones_like(true, dtype=torch.bool).scatter(-1, true.topk(5).indices, False)

    def kl(x):
        log_p = log_softmax(x, -1)
        return (log_p.exp() * (log_p - student)).sum(-1)

    tail = (true.softmax(-1) * outside).sum(-1)
    theirs = student[outside].view(len(true), -1)
    bound = tail * (torch.tensor(45.0).log() + theirs.amax(-1) - theirs.amin(-1))
    assert ((kl(true) - kl(found)).abs() <= bound + 1e-6).all()


def test_half_precision_and_masked_classes():
    true = logits(3.0)
    true[:, :20] = -torch.inf
    found = given_back(true, 35, torch.bfloat16)  # more than there are: the rest has no mass
    torch.testing.assert_close(found.softmax(-1), true.softmax(-1), rtol=0.05, atol=2e-3)
    assert (found[:, :20] == -torch.inf).all()
