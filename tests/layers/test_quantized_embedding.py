"""Quantized embeddings against plain ones that are given the quantized table, and real ranks over quantized layers."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from hf_stages.layers import BinaryEmbedding, Quantizer, SplitEmbedding, TernaryEmbedding
from hf_stages.transforms import Ternarize
from tests.conftest import ROOT
from tests.support import tiny

KINDS = [
    (BinaryEmbedding, "mean"),
    (BinaryEmbedding, "learned"),
    (TernaryEmbedding, "twn"),
    (TernaryEmbedding, "absmean"),
    (TernaryEmbedding, "learned"),
    (SplitEmbedding, "mean"),
    (SplitEmbedding, "learned"),
]
each_kind = pytest.mark.parametrize(("kind", "method"), KINDS)
IDS = torch.tensor([[1, 3, 3], [0, 9, 1]])


def built(kind, method, per="row", **more):
    torch.manual_seed(0)
    return kind(10, 8, padding_idx=3, method=method, per=per, **more)


@each_kind
@pytest.mark.parametrize("per", ["tensor", "row", 4])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_it_equals_a_plain_embedding_of_the_quantized_weight(kind, method, per, strength):
    layer = built(kind, method, per)
    layer.set_strength(strength)
    rows, wanted = layer(IDS), F.embedding(IDS, layer.weight, 3)
    torch.testing.assert_close(rows, wanted)
    grad = torch.randn(2, 3, 8)
    params = list(layer.parameters())
    found = torch.autograd.grad(rows, params, grad)
    expected = torch.autograd.grad(wanted, params, grad)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    # The padding row stays as it is.
    for parameter, value in zip(params, found, strict=True):
        if per != "tensor":
            assert (value.reshape(10, -1)[3] == 0).all()
            assert (value != 0).any(), parameter.shape


@each_kind
def test_ids_of_any_shape_are_looked_up_in_any_mode(kind, method):
    layer = built(kind, method)
    for ids in (
        torch.tensor(1),
        torch.tensor([2]),
        torch.zeros(0, dtype=torch.long),
        torch.zeros(2, 0, dtype=torch.long),
    ):
        assert layer(ids).shape == (*ids.shape, 8)
        layer(ids).sum().backward()
    with torch.inference_mode():
        assert layer(IDS).shape == (2, 3, 8)
    meta = built(kind, method, device="meta")
    assert meta(IDS.to("meta")).shape == (2, 3, 8)
    meta.to_empty(device="cpu").reset_parameters()
    assert (meta.weight[3].abs() <= 1e-8).all()  # a learned scale is never quite zero


@each_kind
def test_it_loads_and_copies(kind, method):
    layer, source = built(kind, method), nn.Embedding(10, 8, padding_idx=3)
    layer.load_state_dict(source.state_dict())
    torch.testing.assert_close(sum(layer.latents), source.weight)
    other = kind(10, 8, padding_idx=3, method=method)
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer)):
        assert torch.equal(twin(IDS), layer(IDS))
    half = copy.deepcopy(layer).half()(IDS)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), layer(IDS), rtol=1e-2, atol=1e-2)
    with pytest.raises(AttributeError, match=r"weight is computed from weight_latent"):
        layer.weight = source.weight


def kept(layer: nn.Module) -> int:
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()} | {IDS.untyped_storage().data_ptr()}
    sizes = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(IDS)
    return sum(sizes.values())


@each_kind
def test_it_keeps_nothing_for_the_backward_pass_unless_scales_are_learned(kind, method):
    halves = 2 if kind is SplitEmbedding else 1
    assert kept(built(kind, method)) <= (halves * IDS.numel() * (8 + 1) * 4 if method == "learned" else 0)


def test_embeddings_that_scale_their_output_stay_the_same():
    bart = BartScaledWordEmbedding(10, 8, 3, embed_scale=4.0)
    gemma = Gemma3TextScaledWordEmbedding(10, 8, 3, embed_scale=8**0.5).bfloat16()
    for source in (bart, gemma):
        layer = TernaryEmbedding.from_layer(source, Quantizer("ternary", "twn"))
        layer.set_strength(0.0)
        assert torch.equal(layer(IDS), source(IDS))
        again = BinaryEmbedding.from_layer(layer, Quantizer("binary", "mean"))
        again.set_strength(0.0)
        assert torch.equal(again(IDS), source(IDS))
        assert layer.to("meta")(IDS.to("meta")).is_meta
        assert "embed_scale" not in layer.state_dict()


def test_rows_that_would_be_renormalized_are_refused():
    with pytest.raises(ValueError, match="max_norm: a quantized embedding does not renormalize"):
        BinaryEmbedding.from_layer(nn.Embedding(4, 4, max_norm=1.0), Quantizer("binary", "mean"))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", [tiny.VOCAB - 4, tiny.VOCAB + 8])
def test_resizing_the_vocabulary_afterwards_is_refused(tied, rows):
    """transformers writes to ``weight.data``: the table would keep its rows, and the head become a plain one."""
    model = tiny.llama(tie_word_embeddings=tied)
    model = Ternarize(["layers", "embed_tokens", "lm_head"])(model)
    head, names = model.lm_head, list(model.state_dict())
    model.resize_token_embeddings(tiny.VOCAB)
    with pytest.raises(
        ValueError, match=rf"TernaryEmbedding: expected 64 rows, .* got {rows}; resize .* before quantizing"
    ):
        model.resize_token_embeddings(rows)
    assert model.lm_head is head
    assert list(model.state_dict()) == names
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == tiny.VOCAB


WORKER = """
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from hf_stages.layers import Activations, BinaryEmbedding, SplitLinear, TernaryLinear
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(rank)
def net():
    ternary = TernaryLinear(8, 8, method="learned", activations=Activations(8, clip=1.0))
    return nn.Sequential(BinaryEmbedding(10, 8), ternary, SplitLinear(8, 4, activations=8))
model = net()
model[1].set_strength(0.5)
ddp = DistributedDataParallel(model)
alone = net()
alone[1].set_strength(0.5)
alone.load_state_dict(model.state_dict())
everything = torch.randint(10, (4, 6), generator=torch.Generator().manual_seed(7))
for strength in (0.5, 0.75, 1.0):
    model[1].set_strength(strength)
    alone[1].set_strength(strength)
    ddp(everything[2 * rank : 2 * rank + 2]).square().mean().backward()
    alone(everything).square().mean().backward()
    for (name, p), q in zip(model.named_parameters(), alone.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=lambda m: f"{name} {m}")
    ddp.zero_grad()
    alone.zero_grad()
dist.barrier()
print("same")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_train_as_one(tmp_path):
    """torchrun, gloo: the gradients of both ranks' rows are those of all rows in one process."""
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "worker.py"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=250)
    assert ran.stdout.count("same") == 2, ran.stderr[-3000:]
