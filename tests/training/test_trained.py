"""After any transition every trainable parameter changes: with activation checkpointing, compiled, in bf16."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo import OptimizedModule
from transformers import TrainerCallback

from hf_stages import Stage
from hf_stages.transforms import Freeze
from tests.workers.ranks import chain, staged


class Moved(TrainerCallback):
    """The trainable parameters of each stage that did not change in it."""

    def __init__(self) -> None:
        self.start: dict[str, dict[str, torch.Tensor]] = {}
        self.still: dict[str, list[str]] = {}

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        assert base.is_activation_checkpointing == args.activation_checkpointing
        assert isinstance(self.trainer.model_wrapped, OptimizedModule) == args.torch_compile
        assert ("_original_forward" in model.__dict__) == args.bf16
        if args.bf16:
            assert model._original_forward.__func__ is type(model).forward, "autocast in autocast"
        now = {n: p.detach().clone() for n, p in model.named_parameters()}
        self.start.setdefault(self.trainer._stage.planned.name, now)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        name = self.trainer._stage.planned.name
        changed = {n: not torch.equal(p, self.start[name][n]) for n, p in model.named_parameters()}
        self.still[name] = [n for n, p in model.named_parameters() if p.requires_grad and not changed[n]]
        assert not [n for n, p in model.named_parameters() if not p.requires_grad and changed[n]]


def _train(out, stages, batch=8, **changes):
    moved = Moved()
    moved.trainer = staged(out, stages, batch, callbacks=[moved], **changes)
    moved.trainer.train()
    assert list(moved.still) == [stage.name for stage in stages]
    assert {name: still for name, still in moved.still.items() if still} == {}
    return moved.trainer


HOW = {
    "checkpointed": {"activation_checkpointing": True},
    "reentrant": {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
    "bf16": {"bf16": True},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
}


@pytest.mark.parametrize("how", [pytest.param(how, marks=[pytest.mark.slow] * (how == "compiled")) for how in HOW])
def test_every_trainable_parameter_changes(how, tmp_path):
    embeddings = Stage("no-embeddings", "2 steps", transforms=[Freeze("model.embed_tokens")])
    stages = [embeddings, *chain()]
    if how == "compiled":  # seconds a stage
        stages = [stage for stage in chain() if stage.name in ("start", "frozen", "lora")]
    trainer = _train(tmp_path, stages, **HOW[how])
    if how in ("checkpointed", "compiled"):
        plainly = _train(tmp_path / "plainly", stages)
        assert _train_loss(trainer) == pytest.approx(_train_loss(plainly), rel=1e-4)


def _train_loss(trainer):
    return trainer.state.log_history[-1]["train_loss"]


@pytest.mark.slow
def test_every_trainable_parameter_changes_compiled_ahead_of_time(tmp_path):
    _train(tmp_path, chain(), torch_compile=True, torch_compile_backend="aot_eager")
