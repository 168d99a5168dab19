"""The divergence in chunks equals autograd through a few plain lines: values and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_stages.losses.divergence import Measure, divergence
from hf_stages.models.signals import Head

ROWS, WIDTH, CLASSES = 23, 6, 11
MEASURES = [
    Measure("forward", 2.0),
    Measure("reverse", 0.7),
    Measure("jsd", 1.5, beta=0.3),
    Measure("forward", 2.0, bernoulli=True),
    Measure("reverse", 0.7, bernoulli=True),
    Measure("jsd", 1.5, beta=0.3, bernoulli=True),
    Measure("mse"),
]
each_measure = pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.kind + "-bernoulli" * m.bernoulli)
each_chunk = pytest.mark.parametrize("chunk", [1, 4 * CLASSES, 10**6])


def kl(p, q):
    return (p * (p.log() - q.log())).sum()


def naive(student, teacher, measure):
    student, teacher = student.double(), teacher.double()
    if measure.kind == "mse":
        return (student - teacher).pow(2).mean(-1).sum()
    pairs = [torch.softmax(z / measure.temperature, -1) for z in (student, teacher)]
    if measure.bernoulli:
        ones = [torch.sigmoid(z / measure.temperature) for z in (student, teacher)]
        pairs = [torch.stack((p, 1 - p)) for p in ones]
    s, t = pairs
    m = measure.beta * t + (1 - measure.beta) * s
    value = {
        "forward": lambda: kl(t, s),
        "reverse": lambda: kl(s, t),
        "jsd": lambda: measure.beta * kl(t, m) + (1 - measure.beta) * kl(s, m),
    }[measure.kind]()
    return value * measure.temperature**2


def random(*shape, seed=0, scale=2.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def head(seed=3, out=CLASSES):
    linear = nn.Linear(WIDTH, out)
    linear.weight.data, linear.bias.data = random(out, WIDTH, seed=seed, scale=0.5), random(out, seed=seed + 1)
    return linear


INDEX = torch.tensor([0, 2, 3, 7, 8, 9, 11, 16, 17, 20, 22])
ALL = torch.arange(ROWS)


def close(found, expected, tol=2e-5):
    expected = expected.to(found.dtype)
    torch.testing.assert_close(found, expected, rtol=tol, atol=tol * max(1.0, expected.abs().max().item()))


@each_measure
@each_chunk
@pytest.mark.parametrize("index", [INDEX, ALL], ids=["some", "all"])
def test_chunks_of_logits_equal_plain_autograd(measure, chunk, index):
    student, teacher = random(ROWS, CLASSES).requires_grad_(), random(ROWS, CLASSES, seed=1)
    expected = naive(student[index], teacher[index], measure)
    (slope,) = torch.autograd.grad(expected * 3, student)
    found = divergence(student, teacher, index, measure, chunk)
    (found * 3).backward()
    close(found, expected)
    close(student.grad, slope)
    assert student.grad.abs().max() > 0.05


@each_measure
@each_chunk
@pytest.mark.parametrize("index", [INDEX, ALL], ids=["some", "all"])
def test_chunks_through_a_head_equal_plain_autograd(measure, chunk, index):
    states, ours, theirs = random(ROWS, WIDTH).requires_grad_(), head(), head(5).requires_grad_(False)
    teacher = random(ROWS, WIDTH, seed=8)
    inputs = [states, ours.weight, ours.bias]
    expected = naive(ours(states)[index], theirs(teacher)[index], measure)
    slopes = torch.autograd.grad(expected * 3, inputs)
    found = divergence(Head(states[None], ours), Head(teacher[None], theirs), index, measure, chunk)
    (found * 3).backward()
    close(found, expected)
    for tensor, slope in zip(inputs, slopes, strict=True):
        close(tensor.grad, slope)
    assert all(tensor.grad.abs().max() > 0.05 for tensor in inputs)


@pytest.mark.parametrize("student_is_head", [True, False])
def test_one_side_may_be_a_head(student_is_head):
    measure, states = MEASURES[0], random(1, ROWS, WIDTH).requires_grad_()
    ours, theirs, teacher = head(), head(5), random(1, ROWS, WIDTH, seed=8)
    expected = naive(ours(states)[0, INDEX], theirs(teacher)[0, INDEX], measure)
    slope = torch.autograd.grad(expected, states)[0]
    sides = (Head(states, ours), theirs(teacher)) if student_is_head else (ours(states), Head(teacher, theirs))
    found = divergence(*sides, INDEX, measure, 3 * CLASSES)
    found.backward()
    close(found, expected)
    close(states.grad, slope)
    assert theirs.weight.grad is None


def test_a_frozen_head_or_frozen_states_leave_the_others_gradient():
    teacher = random(ROWS, CLASSES, seed=1)
    ours = head().requires_grad_(False)
    states = random(ROWS, WIDTH).requires_grad_()
    divergence(Head(states, ours), teacher, INDEX, MEASURES[0], 30).backward()
    expected = naive(ours(states)[INDEX], teacher[INDEX], MEASURES[0])
    close(states.grad, torch.autograd.grad(expected, states)[0])
    assert ours.weight.grad is None
    ours.requires_grad_(True)
    divergence(Head(states.detach(), ours), teacher, INDEX, MEASURES[0], 30).backward()
    expected = naive(ours(states.detach())[INDEX], teacher[INDEX], MEASURES[0])
    close(ours.weight.grad, torch.autograd.grad(expected, ours.weight)[0])


def test_tied_embedding_gets_both_gradients():
    embedding, ours = nn.Embedding(CLASSES, WIDTH), nn.Linear(WIDTH, CLASSES, bias=False)
    ours.weight = embedding.weight
    ids, teacher = torch.arange(ROWS) % CLASSES, random(ROWS, CLASSES)
    expected = naive(ours(embedding(ids)), teacher, MEASURES[0])
    slope = torch.autograd.grad(expected, embedding.weight)[0]
    divergence(Head(embedding(ids), ours), teacher, ALL, MEASURES[0], 30).backward()
    close(embedding.weight.grad, slope)


def test_a_lora_head_and_an_odd_head_work():
    """Called as a module: adapters count, a frozen base gets nothing, and what follows the weights is not lost."""

    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = head().requires_grad_(False)
            self.a, self.b = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, CLASSES, bias=False)

        def forward(self, x):
            return 3 * torch.tanh((self.base(x) + self.b(self.a(x))) / 3)

    ours, states, teacher = Adapted(), random(ROWS, WIDTH).requires_grad_(), random(ROWS, CLASSES)
    inputs = [states, ours.a.weight, ours.b.weight]
    slopes = torch.autograd.grad(naive(ours(states)[INDEX], teacher[INDEX], MEASURES[0]), inputs)
    divergence(Head(states, ours), teacher, INDEX, MEASURES[0], 30).backward()
    for tensor, slope in zip(inputs, slopes, strict=True):
        close(tensor.grad, slope)
    assert ours.base.weight.grad is None


@each_measure
@pytest.mark.parametrize("form", ["logits", "head"])
def test_no_position_is_zero_with_zero_gradients(measure, form):
    states, ours, teacher = random(ROWS, WIDTH).requires_grad_(), head(), random(ROWS, CLASSES)
    student = Head(states, ours) if form == "head" else ours(states)
    value = divergence(student, teacher, torch.arange(0), measure)
    assert value.item() == 0
    assert value.requires_grad
    value.backward()
    assert all((tensor.grad == 0).all() for tensor in (states, ours.weight, ours.bias))


@each_measure
def test_a_class_masked_in_both_adds_nothing(measure):
    """-inf in both models is a class that is not there."""
    student, teacher = random(ROWS, CLASSES), random(ROWS, CLASSES, seed=1)
    student[:, 4] = teacher[:, 4] = float("-inf")
    student.requires_grad_()
    found = divergence(student, teacher, ALL, measure)
    found.backward()
    rest = [i for i in range(CLASSES) if i != 4]
    less = naive(student[:, rest], teacher[:, rest], measure)
    close(found, less * (len(rest) / CLASSES if measure.kind == "mse" else 1))
    assert torch.isfinite(student.grad).all()
    assert (student.grad[:, 4] == 0).all()


@each_measure
def test_nan_is_not_hidden(measure):
    student, teacher = random(ROWS, CLASSES).requires_grad_(), random(ROWS, CLASSES, seed=1)
    for side in (0, 1):
        pair = [student.detach().clone().requires_grad_(), teacher.clone()]
        with torch.no_grad():
            pair[side][5, 2] = float("nan")
        assert divergence(*pair, ALL, measure).isnan()


def test_a_class_masked_by_the_student_alone_is_infinite():
    student, teacher = random(ROWS, CLASSES), random(ROWS, CLASSES, seed=1)
    student[:, 4] = float("-inf")
    assert divergence(student, teacher, ALL, Measure("forward")).item() == float("inf")


@each_measure
def test_equal_models_have_no_divergence(measure):
    student = random(ROWS, CLASSES).requires_grad_()
    value = divergence(student, student.detach().clone(), ALL, measure)
    value.backward()
    assert abs(value.item()) < 1e-5
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("chunk", [40, 10**6])
def test_bfloat16_is_computed_at_float32(chunk):
    student, teacher = random(ROWS, CLASSES).bfloat16().requires_grad_(), random(ROWS, CLASSES, seed=1).bfloat16()
    exact = student.detach().double().requires_grad_()
    expected = naive(exact, teacher.double(), MEASURES[0])
    found = divergence(student, teacher, ALL, MEASURES[0], chunk)
    (found / 7).backward()
    (expected / 7).backward()
    assert found.dtype == torch.float32
    assert student.grad.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("autocast", [True, False])
def test_gradients_of_a_head_keep_its_dtype(autocast):
    """Under autocast the weights stay float32 and so do their gradients; a bfloat16 head gets bfloat16 ones."""
    dtype = torch.float32 if autocast else torch.bfloat16
    states, ours = random(ROWS, WIDTH).to(dtype).requires_grad_(), head().to(dtype)
    teacher, theirs = random(ROWS, WIDTH, seed=8).to(dtype), head(5).to(dtype).requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = naive(ours(states).float(), theirs(teacher).float(), MEASURES[0])
    slopes = torch.autograd.grad(expected, [states, ours.weight])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = divergence(Head(states, ours), Head(teacher, theirs), ALL, MEASURES[0], 5 * CLASSES)
    found.backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)
    for tensor, slope in zip((states, ours.weight), slopes, strict=True):
        assert tensor.grad.dtype == dtype
        torch.testing.assert_close(tensor.grad, slope, rtol=2**-6, atol=2**-6 * slope.abs().max().item())


def test_without_gradients_none_are_computed():
    states, ours = random(ROWS, WIDTH).requires_grad_(), head()
    with torch.no_grad():
        value = divergence(Head(states, ours), random(ROWS, CLASSES), INDEX, MEASURES[0], 30)
        plain = divergence(ours(states), random(ROWS, CLASSES), INDEX, MEASURES[0], 30)
    assert not value.requires_grad
    close(value, plain)


def test_backward_twice_and_no_second_derivative():
    student = random(ROWS, CLASSES).requires_grad_()
    value = divergence(student, random(ROWS, CLASSES, seed=1), ALL, MEASURES[0])
    once, twice = (torch.autograd.grad(value * k, student, retain_graph=True)[0] for k in (1, 2))
    close(twice, 2 * once)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(value, student, create_graph=True)


def test_refuses_other_positions_and_other_classes():
    with pytest.raises(ValueError, match="23 positions, the teacher's 20"):
        divergence(random(ROWS, CLASSES), random(20, CLASSES), INDEX, MEASURES[0])
    with pytest.raises(ValueError, match="11 logits per position, the teacher 12"):
        divergence(random(ROWS, CLASSES), random(ROWS, CLASSES + 1), INDEX, MEASURES[0])
