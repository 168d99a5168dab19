"""Quantized linear layers under torch.compile."""

from __future__ import annotations

import functorch.compile
import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from hf_stages.layers import Activations, BinaryLinear, SplitLinear
from tests.layers.linear_kinds import ACTIVATIONS, built, each_kind, inputs


def check_compiled(layer, **options) -> None:
    """The graph, whole, and the numbers."""
    torch._dynamo.reset()
    x = inputs()
    compiled = torch.compile(layer, fullgraph=True, **options)
    y, params = compiled(x), [x, *layer.parameters()]
    torch.testing.assert_close(y, layer(x), rtol=1e-3, atol=1e-3)
    found = torch.autograd.grad(y.square().sum(), params)
    wanted = torch.autograd.grad(layer(x).square().sum(), params)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_it_compiles_to_one_graph_with_the_same_numbers():
    check_compiled(built(BinaryLinear, activations=8), backend="aot_eager")  # asks for no C++ compiler


@pytest.mark.slow
@pytest.mark.parametrize("activations", ACTIVATIONS[:4])
@each_kind
def test_all_kinds_compile_to_one_graph_with_the_same_numbers(kind, method, activations):
    check_compiled(built(kind, method, activations), backend="aot_eager")


def test_compiled_keeps_no_weights_for_backward():
    """Forward and backward make one and the same weight: torch.compile would keep it instead."""
    torch._dynamo.reset()
    kept: list = []

    def forward(graph, inputs):
        *_, output = graph.graph.nodes
        kept.extend(node.meta["val"] for node in output.args[0][1:] if node is not None and node.op != "placeholder")
        return functorch.compile.make_boxed_func(graph.forward)

    def backward(graph, inputs):
        return functorch.compile.make_boxed_func(graph.forward)

    cut = functorch.compile.min_cut_rematerialization_partition  # Inductor's
    backend = aot_autograd(fw_compiler=forward, bw_compiler=backward, partition_fn=cut)
    layer = BinaryLinear(16, 6, activations=8)
    torch.compile(layer, backend=backend)(torch.randn(3, 16, requires_grad=True)).square().sum().backward()
    assert not kept  # inputs and parameters are there anyway


@pytest.mark.parametrize("kind", [BinaryLinear, SplitLinear])
def test_it_compiles_transposed_under_autocast_in_a_checkpointed_block(kind):
    """Transposed, under autocast, within a checkpointed block."""
    torch._dynamo.reset()
    plain = Conv1D(6, 16)
    levels = kind(16, 6).quantizer
    halves = [torch.randn(16, 6) for _ in range(2)] if kind.split else None
    layer, x = kind.from_layer(plain, levels, Activations(), halves), inputs()

    def block(x):
        with torch.autocast("cpu", torch.bfloat16):
            return checkpoint(layer, x, use_reentrant=False)

    y = torch.compile(block, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(y, block(x))
    params = [x, *layer.parameters()]
    found = torch.autograd.grad(y.float().square().sum(), params)
    wanted = torch.autograd.grad(block(x).float().square().sum(), params)
    torch.testing.assert_close(found, wanted)


@pytest.mark.slow
def test_it_compiles_once_for_all_strengths():
    torch._dynamo.reset()
    layer, x = built(BinaryLinear, activations=8), inputs()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter)
    for strength in (0.1, 0.2, 0.9):
        layer.set_strength(strength)
        torch.testing.assert_close(compiled(x), layer(x))
    assert counter.frame_count == 1


@pytest.mark.slow
@each_kind
def test_inductor_gives_the_same_numbers(kind, method):
    check_compiled(built(kind, method, 8))
