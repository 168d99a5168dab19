"""What cannot be quantized is refused before the first step."""

from __future__ import annotations

import pytest
from torch import nn

from hf_stages import Recipe, Stage
from hf_stages.core.curves import Linear
from hf_stages.planning.model_shapes import build_skeletons
from hf_stages.transforms import (
    AddLora,
    Binarize,
    Freeze,
    MergeLora,
    ResizeVocab,
    SplitTernary,
    Ternarize,
)
from tests.transforms.quantized_models import with_own_forward

B, T, S = Binarize(), Ternarize(), SplitTernary()
REFUSED = {
    "nothing": ([Ternarize("no_such")], "modules: the pattern 'no_such' matches nothing; there are names"),
    "own-forward": ([Ternarize("layers.0.mlp.up_proj")], "is a OwnForward, whose forward pass is not known"),
    "group": ([Ternarize(per=7)], "per: groups of 7 do not fill rows of 16 weights; choose a divisor of 16"),
    "all-out": ([Ternarize(exclude="*")], "nothing left to quantize"),
    "split-plain": ([S], "expected ternary layers, got a .* without quantized layers"),
    "split-binary": ([B, S], "expected ternary layers, got a .* quantized layers are binary"),
    "split-twice": ([T, S, S], "expected ternary layers"),
    "split-pattern": ([T, SplitTernary("lm_head")], "modules: the pattern 'lm_head' matches nothing"),
    "binary-ternary": ([B, T], "is binary already; ternary comes before binary"),
    "split-binarize": ([T, S, B], "was split into two binary halves already"),
    "split-ternarize": ([T, S, T], "was split into two binary halves already"),
    "twice": ([T, T], "nothing left to quantize"),
    "twice-named": ([T, Ternarize("layers.0.self_attn")], "is ternary already; leave this transform out"),
    "peft": ([AddLora(r=2, target_modules=["q_proj"]), T], "merge it first: MergeLora"),
    "merge": ([T, AddLora(r=2, target_modules=["q_proj"]), MergeLora()], "merge before quantizing"),
    "vocab": ([T, ResizeVocab(48)], "put ResizeVocab before the transform which made it"),
    "latents": ([T, Freeze("no_such")], "matches nothing; there are names such as"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_the_plan(build, name):
    chain, message = REFUSED[name]
    model = with_own_forward(build("llama")) if name == "own-forward" else build("llama")
    stages = [Stage(f"s{i}", "1 steps", transforms=[t]) for i, t in enumerate(chain)]
    with pytest.raises(
        ValueError, match=rf"stage 's{len(chain) - 1}': transforms\[0\] {type(chain[-1]).__name__}.*{message}"
    ):
        build_skeletons(Recipe(stages), model.to("meta"))


@pytest.mark.parametrize("modules", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("kind", [Ternarize, Binarize])
def test_one_side_of_a_tie_is_refused(build, kind, modules):
    with pytest.raises(ValueError, match=r"shares its weight with .*, which is not to be quantized; name both"):
        kind(modules)(build("tied"))
    way = rf"leave embeddings=True out, or name both in {kind.__name__}\(modules=...\)"
    with pytest.raises(ValueError, match=rf"model.embed_tokens shares its weight with lm_head, .*; {way}"):
        kind(embeddings=True)(build("tied"))


def test_models_quantized_by_others_are_refused(build):
    model = build("llama")
    model.is_quantized = True
    with pytest.raises(
        ValueError, match="expected full-precision weights to train, got a model that is quantized already"
    ):
        Ternarize()(model)
    foreign = type("Linear4bit", (nn.Linear,), {"__module__": "bitsandbytes.nn.modules"})
    model = build("llama")
    model.model.layers[0].mlp.up_proj = foreign(16, 24)
    with pytest.raises(ValueError, match=r"quantized already \(Linear4bit\); load it without quantization_config"):
        Ternarize("layers.1")(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": Linear(0, 0.5)}, "expected 1 at the stage's end"),
        ({"strength": 0.5}, "expected 1 at the stage's end"),
        ({"strength": Linear(-1, 1)}, "expected values from 0 to 1"),
        ({"per": 0}, "per: expected"),
        ({"activations": 3}, "activations: bits: expected 8 or 4"),
        ({"activations": None, "clip": 1.0}, "expected 8 or 4 beside"),
        ({"method": "mean"}, "method: expected one of"),
        ({"embeddings": "yes"}, "embeddings: expected True, False or None"),
        ({"modules": 3}, "modules: expected a name pattern"),
    ],
)
def test_declarations_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=f"Ternarize: .*{message}"):
        Ternarize(**options)
