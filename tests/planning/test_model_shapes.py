from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hf_stages import Linear, MakeRecurrent, Recipe, Stage
from hf_stages.models.structure import save_weights
from hf_stages.planning.model_shapes import shape_of, stage_shapes
from hf_stages.transforms import SplitTernary, Ternarize, Transform
from hf_stages.transforms.freeze import Freeze
from tests.support import tiny
from tests.support.plans import skeleton


@dataclass(frozen=True)
class Widen(Transform):
    """Makes the head wider, so that a branch can be told from its siblings."""

    by: int = 1

    def __call__(self, model):
        head = model.lm_head
        with torch.device(head.weight.device):
            model.lm_head = nn.Linear(head.in_features, head.out_features + self.by, bias=False)
        return model


@dataclass(frozen=True)
class ReadsValues(Transform):
    def __call__(self, model):
        model.scale = model.lm_head.weight.abs().mean().item()
        return model


def test_counts_equal_those_of_the_real_model():
    real, shape = tiny.llama(), stage_shapes(Recipe([Stage("a", "1 steps")]), skeleton())["a"]
    total = sum(p.numel() for p in real.parameters())
    assert (shape.params, shape.trainable, shape.bytes) == (total, total, 4 * total + 8 * total)
    assert shape.non_embedding == real.num_parameters(exclude_embeddings=True)


def test_a_tied_head_counts_once_and_is_multiplied():
    shape = shape_of(skeleton(tie_word_embeddings=True))
    assert shape.params == shape.non_embedding == shape_of(skeleton()).non_embedding


def test_every_branch_starts_from_its_own_parent():
    stages = [
        Stage("root", "1 steps"),
        Stage("wide", "1 steps", transforms=[Widen(1)]),
        Stage("wider", "1 steps", transforms=[Widen(1)]),
        Stage("side", "1 steps", parents="root"),
        Stage("anew", "1 steps", parents=[], transforms=[Widen(3)]),
    ]
    bare = skeleton()
    params = {name: shape.params for name, shape in stage_shapes(Recipe(stages), bare).items()}
    row = tiny.llama_config().hidden_size
    extra = {name: (count - params["root"]) // row for name, count in params.items()}
    assert extra == {"root": 0, "wide": 1, "wider": 2, "side": 0, "anew": 3}
    assert bare.lm_head.out_features == tiny.VOCAB  # left as it was


def test_frozen_parameters_are_not_trained_and_need_no_moments():
    shapes = stage_shapes(Recipe([Stage("a", "1 steps", transforms=[Freeze("embed_tokens")])]), skeleton())
    table = tiny.VOCAB * tiny.llama_config().hidden_size
    assert shapes["a"].trainable == shapes["a"].params - table
    assert shapes["a"].bytes == 4 * shapes["a"].params + 8 * shapes["a"].trainable


def test_a_refusing_transform_is_named_with_its_place():
    stages = [Stage("a", "1 steps"), Stage("b", "1 steps", transforms=[Widen(1), Freeze("no.such")])]
    with pytest.raises(ValueError, match=r"^stage 'b': transforms\[1\] Freeze: the pattern 'no.such' matches nothing"):
        stage_shapes(Recipe(stages), skeleton())


def test_a_transform_that_reads_weights_leaves_its_branch_out():
    stages = [
        Stage("a", "1 steps"),
        Stage("b", "1 steps", transforms=[ReadsValues()]),
        Stage("c", "1 steps"),
        Stage("d", "1 steps", parents="a"),
    ]
    assert list(stage_shapes(Recipe(stages), skeleton())) == ["a", "d"]


def test_the_generators_of_training_are_not_moved():
    before = torch.get_rng_state()
    stage_shapes(Recipe([Stage("a", "1 steps", transforms=[Widen()])]), skeleton())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_holds_latent_and_effective_weights(tmp_path):
    model = SplitTernary()(Ternarize()(tiny.bert()))
    save_weights(model, tmp_path)
    held = sum(tensor.nbytes for tensor in load_file(tmp_path / "model.safetensors").values())
    shape = shape_of(model)
    assert shape.bytes == held + 8 * shape.trainable


def test_flops_count_the_cycles_of_a_recurrent_core():
    def flops(transforms, **more):
        return stage_shapes(Recipe([Stage("deep", "1 steps", transforms=transforms)]), skeleton(**more))["deep"]

    recurrent = {"prelude": 1, "core": 1, "coda": 0, "norm": "pre", "adapter": "add"}
    once = flops([MakeRecurrent(**recurrent, mean_depth=0)])
    assert (once.loops.training, once.loops.forward) == (0, 0)
    core = sum(p.numel() for p in skeleton().model.layers[1].parameters())
    deep = flops([MakeRecurrent(**recurrent, mean_depth=32, backprop=8)])
    assert deep.loops.forward == 2 * core * 31
    # 33 cycles on average; gradients flow through nearly 8 of them, 7 beyond the first.
    assert deep.loops.training == pytest.approx(core * (6 * 7 + 2 * 25), rel=0.03)
    ramp = flops([MakeRecurrent(**recurrent, mean_depth=Linear(0, 64), backprop=1)])
    assert ramp.loops.training == pytest.approx(core * 2 * 32, rel=0.05)
    frozen = flops([MakeRecurrent(**recurrent, mean_depth=4, backprop=10**6), Freeze("*", but="lm_head")])
    assert frozen.loops.training == pytest.approx(core * 4 * 4, rel=0.05)
