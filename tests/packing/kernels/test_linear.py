from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from hf_stages.layers import Activations
from hf_stages.packing.kernels import library, which
from tests.packing.kernels.random_layers import BITS, packed, run

WAYS = [
    pytest.param(Activations(), None, id="dynamic"),
    pytest.param(Activations(symmetric=False), None, id="asymmetric"),
    pytest.param(Activations(bits=4), None, id="4-bit"),
    pytest.param(Activations(clip=1.0), [0.8], id="learned"),
    pytest.param(Activations(symmetric=False, clip=1.0), [-0.3, 0.9], id="learned-asymmetric"),
]


def expected(x, p, bias=None, activations=None, clip=None):
    """In float64, of the very codes that training rounds to."""
    entered = x.float()
    if activations is not None:
        codes, scale, zero = activations.levels(entered, clip)
        entered = (codes.double() - (0 if zero is None else zero.double())) * scale.double()
    return F.linear(entered.double(), p.dense, None if bias is None else bias.double())


def close(got, wanted):
    torch.testing.assert_close(got.double(), wanted, rtol=2e-6, atol=2e-5, equal_nan=True)


UNBUILT = pytest.mark.skip(reason="the kernels' library is not built: python -m hf_stages.packing.kernels.build")
PATHS = [name for name in library.available() if name not in ("int_mm", "dense")]


@pytest.fixture(params=[*(PATHS or [pytest.param("native", marks=UNBUILT)]), "dense", "int_mm"])
def path(request, monkeypatch):
    """Each path of the library that this processor has, dense weights, and torch._int_mm (slow on some processors)."""
    monkeypatch.setenv(library.VARIABLE, request.param)
    which.cache_clear()
    yield request.param
    monkeypatch.undo()
    which.cache_clear()


@pytest.mark.parametrize("levels", BITS)
@pytest.mark.parametrize(("activations", "clip"), WAYS)
def test_it_is_the_linear_layer_of_the_rounded_activations(path, levels, activations, clip):
    clip = None if clip is None else torch.tensor(clip)
    for number, (rows, out, columns, groups) in enumerate(
        [
            (1, 1, 1, 1),
            (1, 67, 300, 1),
            (3, 20, 96, 3),
            (5, 33, 1, 1),
            (9, 16, 515, 1),
            (130, 18, 260, 2),
            (4, 5, 30, 6),
        ]
    ):
        p = packed(levels, out, columns, groups, seed=number)
        x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(number))
        bias = torch.randn(out) if number % 2 else None
        close(run(x, p, bias, activations, clip), expected(x, p, bias, activations, clip))


@pytest.mark.parametrize("levels", BITS)
@pytest.mark.parametrize("activations", [Activations(), Activations(symmetric=False)], ids=["symmetric", "asymmetric"])
def test_narrow_layers_and_few_rows_are_right(path, levels, activations):
    """One input, one output, one row, none at all: sizes at which matrix products of others are at their edges."""
    for columns in (1, 2, 3, 4, 5, 6, 7, 8, 9):
        for out, rows in [(1, 1), (2, 1), (1, 3), (33, 1), (16, 17), (5, 0)]:
            p = packed(levels, out, columns, seed=columns)
            x = torch.randn(2, rows, columns).transpose(0, 1)
            spoilt = [torch.full((size,), -77777, dtype=torch.int32) for size in (16, 64, 256, 1024)]
            del spoilt  # memory that is given out again, for results that are never written
            close(run(x, p, None, activations), expected(x, p, None, activations))


@pytest.mark.parametrize("levels", BITS)
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_full_precision_activations_are_multiplied_exactly(path, levels, rows):
    for columns, groups in [(300, 1), (96, 3), (30, 6)]:
        p, x, bias = packed(levels, 37, columns, groups), torch.randn(rows, columns), torch.randn(37)
        torch.testing.assert_close(run(x, p, bias).double(), expected(x, p, bias), rtol=1e-5, atol=1e-4)


def test_inputs_of_any_shape_and_dtype_are_multiplied(path):
    p, eight = packed("ternary", 10, 48), Activations()
    assert run(torch.empty(0, 7, 48), p, None, eight).shape == (0, 7, 10)
    assert run(torch.randn(48), p, None, eight).shape == (10,)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        x = torch.randn(2, 3, 48).to(dtype)
        got = run(x, p, None, eight)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected(x, p, None, eight), rtol=1e-2, atol=1e-2)
    cut = torch.randn(5, 96)[:, ::2]
    close(run(cut, p, None, eight), expected(cut, p, None, eight))


@pytest.mark.parametrize("activations", [Activations(), Activations(symmetric=False), Activations(clip=1.0)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_token_that_cannot_be_rounded_is_nan_and_no_other(path, activations, bad):
    p, x = packed("binary", 6, 40), torch.randn(12, 40)
    x[7, 33] = bad
    clip = None if activations.clip is None else activations.initial_range()
    lost = run(x, p, None, activations, clip).isnan()
    assert lost[7].all()
    assert lost.sum() == 6


@pytest.mark.parametrize("levels", BITS)
def test_gradients_equal_those_of_the_unpacked_weight(path, levels):
    p, bias = packed(levels, 9, 24, 2), torch.zeros(9, requires_grad=True)
    x, grad = torch.randn(2, 3, 24, requires_grad=True), torch.randn(2, 3, 9)
    run(x, p, bias, Activations()).backward(grad)
    torch.testing.assert_close(x.grad.double(), grad.double() @ p.dense, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias.grad, grad.sum((0, 1)))
    x.grad = None
    run(x, p, bias, Activations(clip=0.5), torch.tensor([0.5])).backward(grad)
    assert (x.grad[x.detach().abs() > 0.5] == 0).all(), "beyond a learned range there is no gradient, as in training"


def test_it_compiles_to_one_graph():
    p, x, bias = packed("split", 9, 24), torch.randn(3, 24, requires_grad=True), torch.randn(9)

    def layer(x):
        return run(x.tanh(), p, bias, Activations(symmetric=False)).square()

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found, wanted = compiled(x), layer(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (found, wanted)))


def test_a_cache_notices_a_changed_weight(path):
    p, other, x = packed("binary", 8, 64), packed("binary", 8, 64, seed=1), torch.randn(4, 64)
    cache: dict = {}
    for _ in range(2):
        close(
            run(x, p, None, Activations(symmetric=False), cache=cache),
            expected(x, p, None, Activations(symmetric=False)),
        )
    p.weight.copy_(other.weight)
    p.scale.copy_(other.scale)
    p.dense = other.dense
    close(
        run(x, p, None, Activations(symmetric=False), cache=cache), expected(x, p, None, Activations(symmetric=False))
    )
    p.scale.data.mul_(3)  # which counts no version
    p.dense = p.dense * 3
    close(
        run(x, p, None, Activations(symmetric=False), cache=cache), expected(x, p, None, Activations(symmetric=False))
    )


def test_the_number_of_threads_changes_nothing(path):
    p, x, found = packed("ternary", 1500, 256, 2), torch.randn(70, 256), []
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append((run(x, p, None, Activations()), run(x[:1].repeat(1, 1), p, None, Activations())))
    torch.set_num_threads(before)
    if path in PATHS:
        assert all(torch.equal(a, b) for pair in found[1:] for a, b in zip(found[0], pair, strict=True))


def test_several_threads_may_call_at_once(path):
    p, xs = packed("binary", 600, 512), torch.randn(4, 16, 512)
    wanted, wrong = [run(x, p, None, Activations()) for x in xs], []

    def call(number):
        torch.set_num_threads(2)  # each thread of Python has a number of its own
        for _ in range(20):
            if not torch.allclose(run(xs[number], p, None, Activations()), wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FORKED = """
import os, signal, torch
from hf_stages.packing.kernels import linear, which
from hf_stages.layers import Activations
torch.set_num_threads(2)
weight, scale, x = torch.randint(0, 256, (2000, 256), dtype=torch.uint8), torch.rand(2000, 1), torch.randn(2, 1024)
def call():
    with torch.inference_mode():
        return linear(x, weight, scale, levels="ternary", in_features=1024, activations=Activations())
wanted = call()
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(0 if all(torch.equal(call(), wanted) for _ in range(50)) else 3)
assert torch.equal(call(), wanted)
assert os.waitpid(child, 0)[1] == 0
"""


def test_it_runs_after_a_fork(run_python):
    if library.library_path() is None:
        pytest.skip("the kernels' library is not built, or left out by HF_STAGES_KERNEL")
    run_python(FORKED)


def test_tensors_that_do_not_fit_are_refused():
    p, x = packed("ternary", 4, 16), torch.randn(2, 16)
    for change, words in [
        ({"levels": "quaternary"}, "levels: expected one of ternary, binary, split"),
        ({"columns": 12}, r"x: expected \[..., 12\]"),
        ({"weight": p.weight[:, :3]}, r"weight: expected uint8 \[out, 4\]"),
        ({"weight": p.weight.int()}, "got torch.int32"),
        ({"scale": p.scale[:3]}, "scale: expected"),
        ({"scale": p.scale.expand(4, 3)}, "divisor of 16"),
    ]:
        with pytest.raises(ValueError, match=words):
            run(x, SimpleNamespace(**{**vars(p), **change}), None, Activations())
    with pytest.raises(ValueError, match=r"bias: expected \[4\]"):
        run(x, p, torch.zeros(5), Activations())
