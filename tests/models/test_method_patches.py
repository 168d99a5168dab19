"""Methods that stand on a model's object: made again for a model built anew, or refused."""

from __future__ import annotations

import copy
import functools
import types

import pytest
from transformers import Trainer, TrainingArguments

from hf_stages import Stage, StagedMixin, StagedTrainer
from hf_stages.models.method_patches import Patches
from tests.support import tiny


def scale_logits(model, factor):
    """Replaces a method in the way that trainers do."""
    inner = model.forward

    @functools.wraps(type(model).forward)
    def forward(self, *args, **kwargs):
        outputs = inner(*args, **kwargs)
        outputs.logits = outputs.logits * factor
        return outputs

    model.forward = types.MethodType(forward, model)


def no_sampling(model):
    inner = model.generate
    model.generate = lambda *args, **kwargs: inner(*args, **{**kwargs, "do_sample": False})


class Scaling(Trainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        scale_logits(self.model, 0.5)
        no_sampling(self.model)
        self.model.add_model_tags(["scaled"])


class StagedScaling(StagedMixin, Scaling):
    pass


def arguments(out):
    return TrainingArguments(
        str(out),
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        learning_rate=0.0,
    )


def logits(model):
    import torch

    return model.eval()(input_ids=torch.arange(3, 9)[None]).logits


def test_a_branch_has_the_replaced_method_too(tmp_path):
    stages = [Stage("a", "1 steps"), Stage("b", "1 steps", parents=())]
    trainer = StagedScaling(tiny.llama(), arguments(tmp_path), train_dataset=tiny.lm_data(8), stages=stages)
    trainer.train()
    assert logits(trainer.model).equal(logits(tiny.llama()) * 0.5)
    assert "generate" in vars(trainer.model)
    assert trainer.model.model_tags == ["scaled"]


def test_a_deep_copy_no_longer_runs_the_old_model():
    first = tiny.llama()
    scale_logits(first, 0.5)
    patches = Patches.read(first)
    other = copy.deepcopy(first)
    other.lm_head.weight.data.zero_()
    assert logits(other).any()  # of the first model
    patches.apply(other)
    assert not logits(other).any()
    patches.apply(first)  # what is in place stays
    assert logits(first).equal(logits(tiny.llama()) * 0.5)


def test_the_method_is_replaced_on_the_base_of_an_adapter():
    peft = pytest.importorskip("peft")
    first, other = tiny.llama(), tiny.llama()
    scale_logits(first, 0.5)
    adapted = peft.get_peft_model(other, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    Patches.read(first).apply(adapted)
    assert logits(adapted).equal(logits(first))


def test_a_method_that_cannot_be_made_again_is_refused_before_the_first_step(tmp_path):
    class ByHand(StagedTrainer):
        pass

    class Mended(ByHand):
        def prepare_model(self, model):
            hide(model)

    def hide(model):
        model.forward = functools.partial(type(model).forward, model)

    def made(kind, parents):
        student = tiny.llama()
        hide(student)
        stages = [Stage("a", "1 steps"), Stage("b", "1 steps", parents=parents)]
        return kind(student, arguments(tmp_path / kind.__name__), train_dataset=tiny.lm_data(8), stages=stages)

    with pytest.raises(ValueError, match=r"stage 'b': model: `forward` was replaced .*; override prepare_model"):
        made(ByHand, ()).plan()
    made(ByHand, "a").plan()  # goes on with the model at hand
    made(Mended, ()).train()
