"""Quantized linear layers as modules: how they are made, copied, stored, loaded and adapted."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from hf_stages.layers import Activations, BinaryLinear, Quantizer, SplitLinear, TernaryLinear
from tests.layers.linear_kinds import ACTIVATIONS, built, each_kind, inputs


@each_kind
def test_copies_and_pickles_compute_the_same(kind, method):
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
def test_full_precision_weights_become_latents_when_loaded(kind, method):
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
def test_it_runs_on_the_meta_device_and_can_be_emptied_and_reset(kind, method):
    for activations in ACTIVATIONS:
        layer = built(kind, method, activations, device="meta")
        assert layer(torch.empty(2, 16, device="meta")).shape == (2, 6)
        assert layer.weight.is_meta
        assert all(value.is_meta for value in layer.state_dict().values())
        layer.to_empty(device="cpu").reset_parameters()
        assert layer.weight.isfinite().all()


@each_kind
def test_it_draws_its_weights_as_a_plain_layer_does(kind, method):
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


def test_assigning_to_the_weight_is_an_error():
    for kind, name in [(BinaryLinear, "weight_latent"), (SplitLinear, "weight_latent_1 and weight_latent_2")]:
        layer = kind(4, 4)
        for value in (nn.Parameter(torch.ones(4, 4)), torch.ones(4, 4)):
            with pytest.raises(AttributeError, match=rf"{kind.__name__}.weight is computed from {name}; write to"):
                layer.weight = value


def test_parameters_of_the_replaced_layer_stay_the_same_objects():
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


def test_lora_trains_on_top_of_it():
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
