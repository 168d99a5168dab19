"""Running norms against a few lines of Python; gradient norms against backward()."""

from __future__ import annotations

import json

import pytest
import torch

from hf_stages.balance import Balance, gradient_norms
from hf_stages.losses import Balanced, TaskLoss
from hf_stages.losses._algebra import groups_of, terms_of

THREE = TaskLoss() + TaskLoss() + TaskLoss()


def balance(loss):
    return Balance(terms_of(loss), groups_of(loss))


def running(values, momentum):
    """The mean of what was measured, later values weighing more: 1, m, m^2, ... backwards."""
    seen = [v for v in values if 0 < v < float("inf")]
    weights = [momentum**age for age in range(len(seen))][::-1]
    return sum(w * v for w, v in zip(weights, seen, strict=True)) / sum(weights) if seen else None


@pytest.mark.parametrize("momentum", [0, 0.5, 0.99])
def test_scales_bring_each_running_norm_to_the_first(momentum):
    ours = balance(TaskLoss() + Balanced(THREE, momentum=momentum))
    assert ours.scales().tolist() == [1.0] * 4
    nan, inf = float("nan"), float("inf")
    norms = [[7, 2, 1e5, 0], [7, 3, 2e5, 0], [0, nan, inf, nan], [1, 0, 3e5, 1e-6], [nan, 5, 1e5, 0]]
    for step, row in enumerate(norms):
        ours.update(torch.tensor(row))
        means = [running(column, momentum) for column in list(zip(*norms[: step + 1], strict=True))[1:]]
        expected = [1.0, *(means[0] / mean if mean else 1.0 for mean in means)]
        assert ours.scales().tolist() == pytest.approx(expected, rel=1e-6)


def test_the_first_measurement_counts_whole():
    ours = balance(Balanced(THREE, momentum=0.999))
    ours.update(torch.tensor([2.0, 8.0, 0.5]))
    assert ours.norms().tolist() == pytest.approx([2.0, 8.0, 0.5])
    assert ours.scales().tolist() == pytest.approx([1.0, 0.25, 4.0])


def test_without_a_reference_nothing_is_scaled():
    ours = balance(Balanced(THREE))
    ours.update(torch.tensor([0.0, 8.0, 0.5]))
    assert ours.scales().tolist() == [1.0] * 3


def test_groups_do_not_touch_each_other():
    ours = balance(Balanced(TaskLoss() + TaskLoss(), momentum=0) + Balanced(TaskLoss() + TaskLoss(), momentum=0.9))
    for norms in ([1.0, 2.0, 3.0, 30.0], [1.0, 4.0, 3.0, 30.0]):
        ours.update(torch.tensor(norms))
    assert ours.scales().tolist() == pytest.approx([1.0, 0.25, 1.0, 0.1])


def test_which_terms_are_due():
    ours = balance(
        TaskLoss() + Balanced(TaskLoss() + TaskLoss(), every=3) + Balanced(TaskLoss() + TaskLoss(), by="loss")
    )
    assert [ours.due(update, "gradient") for update in range(4)] == [[1, 2], [], [], [1, 2]]
    assert [ours.due(update, "loss") for update in range(2)] == [[3, 4], [3, 4]]


def test_state_survives_json_to_the_last_bit():
    loss, norms = Balanced(THREE, momentum=0.97), torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    whole, cut = balance(loss), balance(loss)
    for step, row in enumerate(norms):
        if step == 7:
            state = json.loads(json.dumps(cut.state_dict()))
            cut = balance(loss)
            cut.load_state_dict(state)
        whole.update(row)
        cut.update(row)
    assert cut.state_dict() == whole.state_dict()
    assert torch.equal(cut.scales(), whole.scales())
    with pytest.raises(ValueError, match="balance: the checkpoint holds 3 terms, the stage has 2"):
        balance(Balanced(TaskLoss() + TaskLoss())).load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_norms_are_those_of_backward(dtype):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).to(dtype)
    model[0].bias.requires_grad_(False)
    hidden = model[0](torch.randn(5, 4, dtype=dtype))
    shares = [model[1](hidden).square().sum(), hidden.sum() * 1e-4, torch.ones(())]
    squares = gradient_norms(shares, model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert squares[2] == 0
    for share, square in zip(shares[:2], squares, strict=False):
        model.zero_grad()
        share.backward(retain_graph=True)
        expected = sum(p.grad.double().square().sum() for p in model.parameters() if p.grad is not None)
        assert square.item() == pytest.approx(expected.item(), rel=1e-5)
