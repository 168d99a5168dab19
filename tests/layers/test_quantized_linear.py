"""Quantized linear layers against plain ones that are given the quantized weight, and as modules among modules."""

from __future__ import annotations

import copy
import io
import pickle

import functorch.compile
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from hf_stages.layers import Activations, BinaryLinear, Quantizer, SplitLinear, TernaryLinear

KINDS = [
    (BinaryLinear, "mean"),
    (BinaryLinear, "learned"),
    (TernaryLinear, "twn"),
    (TernaryLinear, "absmean"),
    (TernaryLinear, "learned"),
    (SplitLinear, "mean"),
    (SplitLinear, "learned"),
]
ACTIVATIONS = [None, 8, Activations(4, symmetric=False), Activations(8, clip=1.5), Activations(4, False, 1.0)]
each_kind = pytest.mark.parametrize(("kind", "method"), KINDS)


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(*(shape or (3, 5, 16)), generator=torch.Generator().manual_seed(1))
    return x.to(dtype).requires_grad_()


def built(kind, method="mean", activations=None, per=4, **more):
    torch.manual_seed(0)
    return kind(16, 6, method=method, per=per, activations=activations, **more)


def plain(layer, x: torch.Tensor) -> torch.Tensor:
    """The layer in autograd's own operations: straight through by detaching."""
    entered = x
    if layer.activations is not None:
        clip = layer.activation_clip
        rounded = layer.activations(x, clip)
        within = x
        if clip is not None:
            low, high = (-clip, clip) if layer.activations.symmetric else (clip[0], clip[1])
            within = x * ((x >= low) & (x <= high))
        entered = rounded.detach() + within - within.detach()
    return F.linear(entered, layer.weight, layer.bias)


def gradients(layer, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    names = [name for name, _ in layer.named_parameters() if name != "activation_clip"]
    found = torch.autograd.grad(y.square().sum(), [x, *(layer.get_parameter(name) for name in names)])
    return list(found)


@each_kind
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_equals_plain_operations(kind, method, strength):
    for activations in ACTIVATIONS if strength == 1 else [None]:
        layer, x = built(kind, method, activations), inputs()
        layer.set_strength(strength)
        y, expected = layer(x), plain(layer, x)
        torch.testing.assert_close(y, expected)
        for found, wanted in zip(gradients(layer, x, y), gradients(layer, x, expected), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@each_kind
def test_the_weight_is_quantized(kind, method):
    layer = built(kind, method)
    parts = [layer.quantizer(latent, scale) for latent, scale in zip(layer.latents, layer.scales or [None] * 2)]  # noqa: B905
    torch.testing.assert_close(layer.weight, sum(parts))
    assert layer.weight.requires_grad
    with torch.no_grad():
        assert not layer.weight.requires_grad


@each_kind
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_strength(kind, method, activations):
    layer, x = built(kind, method, activations), inputs()
    quantized = layer(x)
    layer.set_strength(0.0)
    torch.testing.assert_close(layer(x), F.linear(x, sum(layer.latents), layer.bias))
    y = layer(x)
    y.square().sum().backward()
    wanted = torch.autograd.grad(F.linear(x, sum(layer.latents), layer.bias).square().sum(), [x, layer.latents[0]])
    torch.testing.assert_close([x.grad, layer.latents[0].grad], list(wanted), rtol=1e-4, atol=1e-4)
    assert all((scale.grad == 0).all() for scale in layer.scales)
    layer.set_strength(0.5)
    assert not torch.allclose(layer(x), y)
    assert not torch.allclose(layer(x), quantized)
    layer.set_strength(1)
    assert torch.equal(layer(x), quantized)
    layer.set_strength(0.3)
    assert not list(layer.buffers())  # DDP fails when its last one becomes None
    assert float(copy.deepcopy(layer).half().strength) == pytest.approx(0.3)
    assert layer.to("meta").strength.is_meta
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength: expected a number from 0"):
            layer.set_strength(wrong)


@each_kind
def test_conv1d_is_the_same_layer_transposed(kind, method):
    layer = built(kind, method, 8, per="row")
    gpt = Conv1D(6, 16)
    gpt.bias.data.copy_(layer.bias.data)
    latents = [nn.Parameter(latent.detach().t().contiguous()) for latent in layer.latents]
    other = kind.from_layer(
        gpt, layer.quantizer, layer.activations, latents, [s.detach().clone() for s in layer.scales]
    )
    assert (other.in_features, other.out_features) == (16, 6)
    x = inputs()
    torch.testing.assert_close(other(x), layer(x))
    torch.testing.assert_close(other.weight, layer.weight.t())
    other(x).square().sum().backward()
    layer(x).square().sum().backward()
    for latent, wanted in zip(other.latents, layer.latents, strict=True):
        torch.testing.assert_close(latent.grad, wanted.grad.t())
    assert save(other.state_dict())


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_shapes(activations):
    layer = built(BinaryLinear, activations=activations)
    for shape in [(16,), (1, 16), (0, 16), (2, 0, 16), (2, 3, 4, 16)]:
        x = inputs(*shape)
        layer.zero_grad()
        y = layer(x)
        y.sum().backward()
        assert y.shape == (*shape[:-1], 6)
        assert x.grad.shape == x.shape
        assert layer.weight_latent.grad.shape == layer.weight_latent.shape
    strided = inputs(3, 16, 5).transpose(1, 2)
    torch.testing.assert_close(layer(strided), layer(strided.contiguous()))


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(activations, bad):
    layer, x = built(BinaryLinear, activations=activations), inputs(3, 16).detach()
    x[1, 4] = bad
    y = layer(x)
    assert not y[1].isfinite().any()
    assert y[[0, 2]].isfinite().all()


def kept(layer: nn.Module, x: torch.Tensor) -> int:
    """Bytes of what autograd holds between forward and backward, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    assert y.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("strength", [1.0, 0.5])
@each_kind
def test_keeps_no_more_than_a_plain_layer(kind, method, strength):
    """Beside the input, or a quarter of it, only the rows' scales and thresholds, and each token's."""
    x, halves = inputs(64, 64), 2 if kind is SplitLinear else 1
    most = kept(nn.Linear(64, 32), x)
    rows = 4 * 32 * 2 * halves
    for activations in ACTIVATIONS:
        layer = kind(64, 32, method=method, activations=activations)
        layer.set_strength(strength)
        codes = strength == 1 and getattr(layer.activations, "clip", 1) is None
        assert kept(layer, x) <= (most // 4 + 2 * 4 * 64 if codes else most) + rows + 4
        layer.requires_grad_(False)  # under LoRA
        if getattr(layer.activations, "clip", None) is None:
            assert kept(layer, x) <= rows + 4


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_autocast_gives_what_a_plain_layer_gives(activations):
    layer, x = built(TernaryLinear, "twn", activations), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        y, wanted = layer(x), plain(layer, x.bfloat16())
        assert layer(x.double()).dtype == torch.float64
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, wanted, rtol=2e-2, atol=2e-2)
    y.float().square().sum().backward()
    assert layer.weight_latent.grad.dtype == x.grad.dtype == torch.float32


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(kind, method, dtype):
    for activations in (None, 8, Activations(8, clip=1.5)):
        layer, x = built(kind, method, activations), inputs(dtype=dtype)
        wanted = layer(x.detach().float())
        layer = layer.to(dtype)
        y = layer(x)
        assert {y.dtype, layer.weight.dtype} == {dtype}
        torch.testing.assert_close(y.float(), wanted, rtol=0.1, atol=0.1)
        y.sum().backward()
        assert all(p.grad.isfinite().all() and p.grad.dtype == dtype for p in layer.parameters())


@each_kind
def test_checkpointing_and_double_use(kind, method):
    layer, x = built(kind, method, Activations(8, clip=1.5), bias=False), inputs()
    square = kind(6, 16, method=method)
    chain = nn.Sequential(layer, square, layer)
    wanted = torch.autograd.grad(chain(x).square().sum(), [x, *chain.parameters()])
    for reentrant in (False, True):
        y = checkpoint(chain, x, use_reentrant=reentrant).square().sum()
        y.backward()
        assert torch.equal(x.grad, wanted[0])
        assert all(torch.equal(p.grad, g) for p, g in zip(chain.parameters(), wanted[1:], strict=True))
        x.grad = None
        chain.zero_grad()


def test_halves_have_gradients_of_their_own():
    layer = built(SplitLinear)
    layer(inputs()).sum().backward()
    one, two = (latent.grad for latent in layer.latents)
    assert torch.equal(one, two)
    assert one.data_ptr() != two.data_ptr()


@each_kind
def test_frozen_latents_get_no_gradient(kind, method):
    layer, x = built(kind, method, 8).requires_grad_(False), inputs()
    layer(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in layer.parameters())
    assert not layer(x.detach()).requires_grad


@each_kind
def test_copies_pickles_and_loads(kind, method):
    layer, x = built(kind, method, Activations(8, clip=1.5)), inputs()
    assert next(iter(layer.state_dict())) == "weight"
    fresh = kind(16, 6, method=method, per=4, activations=Activations(8, clip=1.5))
    fresh.load_state_dict(layer.state_dict())
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    others = [fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)]
    for other in others:
        assert torch.equal(other(x), layer(x))
        assert torch.equal(other.weight, layer.state_dict()["weight"])


@each_kind
def test_loads_full_precision_weights(kind, method):
    layer = built(kind, method, Activations(8, clip=1.5))
    source = nn.Linear(16, 6)
    model = nn.ModuleDict({"a": layer})
    model.load_state_dict(nn.ModuleDict({"a": source}).state_dict())
    torch.testing.assert_close(sum(layer.latents), source.weight)
    assert torch.equal(layer.bias, source.bias)
    expected = [layer.quantizer.initial_scales(latent) for latent in layer.latents] if method == "learned" else []
    if kind is not SplitLinear:
        torch.testing.assert_close([s.detach() for s in layer.scales], expected)
    else:  # the halves are those of the ternary weight
        wanted = Quantizer("ternary", "twn" if method == "mean" else "learned", 4)
        scale = wanted.initial_scales(source.weight) if wanted.learned else None
        torch.testing.assert_close(layer.weight, wanted(source.weight, scale), rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match=r"size mismatch for a\.weight_latent"):
        model.load_state_dict(nn.ModuleDict({"a": nn.Linear(8, 6)}).state_dict())


def test_errors_in_loading_name_the_latents():
    layer = built(SplitLinear)
    state = layer.state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"weight_latent_2\""):
        layer.load_state_dict({k: v for k, v in state.items() if k != "weight_latent_2"})
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"other\""):
        layer.load_state_dict({**state, "other": state["bias"]})


@each_kind
def test_meta_device(kind, method):
    for activations in ACTIVATIONS:
        layer = built(kind, method, activations, device="meta")
        assert layer(torch.empty(2, 16, device="meta")).shape == (2, 6)
        assert layer.weight.is_meta
        assert all(value.is_meta for value in layer.state_dict().values())
        layer.to_empty(device="cpu").reset_parameters()
        assert layer.weight.isfinite().all()


@each_kind
def test_begins_as_a_plain_layer_does(kind, method):
    layer = built(kind, method)
    torch.manual_seed(0)
    source = nn.Linear(16, 6)
    torch.testing.assert_close(sum(layer.latents), source.weight)
    assert not any(torch.equal(a, b) for a, b in zip(layer.latents, layer.latents[1:]))  # noqa: B905
    torch.manual_seed(0)
    other = built(kind, method)
    torch.manual_seed(0)
    other.reset_parameters()
    for key, value in layer.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_the_weight_is_not_to_be_assigned():
    for kind, name in [(BinaryLinear, "weight_latent"), (SplitLinear, "weight_latent_1 and weight_latent_2")]:
        layer = kind(4, 4)
        for value in (nn.Parameter(torch.ones(4, 4)), torch.ones(4, 4)):
            with pytest.raises(AttributeError, match=rf"{kind.__name__}.weight is computed from {name}; write to"):
                layer.weight = value


def test_what_was_there_stays_the_same_object():
    """Ties and optimizers hold on to parameters."""
    source = nn.Linear(16, 6).requires_grad_(False)
    layer = TernaryLinear.from_layer(source, Quantizer("ternary", "learned"), Activations(8, clip=1.0))
    assert layer.weight_latent is source.weight
    assert layer.bias is source.bias
    assert not any(p.requires_grad for p in layer.parameters())
    tied = TernaryLinear.from_layer(source, layer.quantizer, None, layer.latents, layer.scales)
    assert tied.weight_scale is layer.weight_scale
    binary = BinaryLinear.from_layer(layer, Quantizer("binary", "mean"), layer.activations)
    assert binary.weight_latent is source.weight
    assert binary.activation_clip is layer.activation_clip


def test_evaluation():
    layer, x = built(TernaryLinear, "twn", 8).eval(), inputs()
    wanted = layer(x).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(layer(x.detach()), wanted)
            assert layer.weight.shape == (6, 16)


def test_a_second_derivative_is_refused():
    """Not silently wrong: the backward pass is not differentiable."""
    layer, x = built(BinaryLinear), inputs()
    (of_x,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        of_x.sum().backward()


def test_a_changed_latent_is_noticed_before_backward():
    layer = built(BinaryLinear)
    y = layer(inputs()).sum()
    with torch.no_grad():
        layer.weight_latent.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def compiles(layer, **options) -> None:
    """The graph, whole, and the numbers."""
    torch._dynamo.reset()
    x = inputs()
    compiled = torch.compile(layer, fullgraph=True, **options)
    y, params = compiled(x), [x, *layer.parameters()]
    torch.testing.assert_close(y, layer(x), rtol=1e-3, atol=1e-3)
    found = torch.autograd.grad(y.square().sum(), params)
    wanted = torch.autograd.grad(layer(x).square().sum(), params)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_compiles():
    compiles(built(BinaryLinear, activations=8), backend="aot_eager")  # asks for no C++ compiler


@pytest.mark.slow
@pytest.mark.parametrize("activations", ACTIVATIONS[:4])
@each_kind
def test_compiles_all(kind, method, activations):
    compiles(built(kind, method, activations), backend="aot_eager")


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
def test_compiles_as_part_of_models(kind):
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
def test_compiles_once_for_all_strengths():
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
def test_inductor(kind, method):
    compiles(built(kind, method, 8))


def test_lora_on_top():
    peft = pytest.importorskip("peft")
    model = nn.Sequential(built(BinaryLinear, activations=8, bias=False))
    x = inputs()
    wanted = model(x).detach()
    lora = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"]))
    torch.testing.assert_close(lora(x), wanted)
    trained = [p for p in lora.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        lora(x).square().sum().backward()
        optimizer.step()
    assert len(trained) == 2
    assert not torch.allclose(lora(x), wanted)
    with lora.disable_adapter():
        torch.testing.assert_close(lora(x), wanted)


def test_refuses():
    with pytest.raises(ValueError, match="groups of 5 do not fill rows of 16 weights"):
        BinaryLinear(16, 4, per=5)
    with pytest.raises(ValueError, match=r"activations: expected 8, 4, Activations\(...\) or None, got '8'"):
        BinaryLinear(16, 4, activations="8")
    with pytest.raises(ValueError, match="expected a layer of one weight, got a SplitLinear"):
        BinaryLinear.from_layer(SplitLinear(4, 4), Quantizer("binary", "mean"))
