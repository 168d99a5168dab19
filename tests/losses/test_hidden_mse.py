"""HiddenMSE against a few lines over ``output_hidden_states``."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from hf_stages.core.batch import Batch
from hf_stages.losses import HiddenMSE
from tests.losses import outside_trainer
from tests.support import tiny

MODELS = {
    "bert": (outside_trainer.bert, outside_trainer.text(), None, ""),
    "bert-left": (outside_trainer.bert, outside_trainer.text(left=True), None, ""),
    "llama": (tiny.llama, outside_trainer.text(padded=False, masked=False), "model.norm", ""),
    "llama-right": (tiny.llama, outside_trainer.text(), "model.norm", ""),
    "llama-left": (tiny.llama, outside_trainer.text(left=True), "model.norm", ""),
    "vit": (tiny.vit, outside_trainer.images(), "vit.layernorm", ""),
    "t5-encoder": (outside_trainer.t5, outside_trainer.pairs_of_text(), "encoder.final_layer_norm", "encoder_"),
    "t5-decoder": (outside_trainer.t5, outside_trainer.pairs_of_text(), "decoder.final_layer_norm", "decoder_"),
}


def _weights(batch, states, part):
    """Real tokens, each 1 / their number; every patch of an image alike."""
    mask = batch["labels"].ne(-100) if part == "decoder_" else batch.get("attention_mask")
    mask = torch.ones(states.shape[:2]) if mask is None else mask.float()
    return mask / mask.sum()


def _reference(name, student, teacher, pairs, distance="mse", through=None):
    _, batch, norm, part = MODELS[name]
    mine, theirs = (outside_trainer.hidden_of(m, batch, norm, part) for m in (student, teacher))
    total = 0.0
    for s, t in pairs:
        state = mine[s] if through is None else through(s)(mine[s])
        if distance == "mse":
            apart = ((state - theirs[t]) ** 2).mean(-1)
        else:
            apart = 1 - (state * theirs[t]).sum(-1) / (state.norm(dim=-1) * theirs[t].norm(dim=-1)).clamp(min=1e-12)
        total = total + (apart * _weights(batch, state, part)).sum()
    return total


@pytest.mark.parametrize("distance", ["mse", "cosine"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_hidden_states(name, distance):
    build, batch, _, part = MODELS[name]
    student, teacher = outside_trainer.two(build)
    student.eval(), teacher.eval()
    found = outside_trainer.value(HiddenMSE(distance=distance, stack=part[:-1] or None), student, teacher, batch)
    torch.testing.assert_close(found, _reference(name, student, teacher, [(0, 0), (1, 2), (2, 4)], distance))


@pytest.mark.parametrize(
    ("layers", "pairs"),
    [
        ("uniform", [(0, 0), (1, 2), (2, 4)]),
        ("last", [(1, 3), (2, 4)]),
        ("skip", [(1, 2)]),
        ([1, -1], [(1, 1), (2, 4)]),
        ({-1: -1, 0: 3}, [(2, 4), (0, 3)]),
        ({1: 4, 2: 4}, [(1, 4), (2, 4)]),
    ],
)
def test_layer_maps_choose_the_documented_layers(layers, pairs):
    student, teacher = outside_trainer.two(tiny.llama)
    found = outside_trainer.value(HiddenMSE(layers), student, teacher, outside_trainer.text())
    torch.testing.assert_close(found, _reference("llama-right", student, teacher, pairs))


@pytest.mark.parametrize("project", ["each", "shared"])
@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_projections_are_applied_and_trained(project, distance):
    student, teacher = outside_trainer.two(outside_trainer.bert, hidden_size=48)
    batch = outside_trainer.text(left=True)
    loss = HiddenMSE(distance=distance, project=project)
    with outside_trainer.installed(loss, student.eval(), teacher, defer=True) as losses:
        maps = losses.terms[0].loss.modules
        assert sorted(maps) == (["all"] if project == "shared" else ["0", "1", "2"])
        own = losses.terms[0].loss
        found = own(*losses.signals(student, Batch(batch), 0.0), batch, 0.0).sum() / own.items(batch)
        through = lambda s: maps["all" if project == "shared" else str(s)]  # noqa: E731
        wanted = _reference("bert-left", student, teacher, [(0, 0), (1, 2), (2, 4)], distance, through)
        torch.testing.assert_close(found, wanted)
        grads = [torch.autograd.grad(v, list(maps.parameters()), retain_graph=True) for v in (found, wanted)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("masked", [True, False])
def test_rows_without_a_mask_count_every_token(masked):
    student, teacher = outside_trainer.two(tiny.llama)
    batch = outside_trainer.text(padded=False, masked=masked)
    found = outside_trainer.value(HiddenMSE({2: 4}), student, teacher, batch)
    torch.testing.assert_close(found, _reference("llama", student, teacher, [(2, 4)]))


def test_other_widths_of_the_decoder_are_refused_by_name():
    student, teacher = tiny.t5(), tiny.t5(1, d_model=48)
    with pytest.raises(ValueError, match=r"32 wide, the teacher 48; set project="):
        HiddenMSE(stack="decoder").for_models(student, teacher)


def test_width_is_that_of_the_stack():
    """A model of two towers with widths of their own."""
    config = tf.CLIPConfig(
        text_config={"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        vision_config={"hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    )
    with torch.device("meta"):
        student = tf.CLIPModel(config)
    with pytest.raises(ValueError, match="say which"):
        HiddenMSE().for_models(student, student)
    assert HiddenMSE(stack="vision_model", project="each").for_models(student, student).modules["1"].in_features == 48
    assert HiddenMSE(stack="text_model", project="each").for_models(student, student).modules["1"].in_features == 32


def test_padding_of_nothing_leaves_the_gradient_finite():
    """Llama's padding token enters as a vector of zeros, which has no direction."""
    student, teacher = outside_trainer.two(tiny.llama)
    outside_trainer.value(
        HiddenMSE({0: 0, 1: 2}, distance="cosine"), student, teacher, outside_trainer.text()
    ).backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
