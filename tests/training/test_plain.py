"""Invariant 1: without stages, StagedTrainer is Trainer, bit for bit: weights, losses, logs and every saved file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from hf_stages import StagedTrainer
from tests.support import tiny
from tests.workers.cases import Pad, Rows, arguments, bert, text

TIMED = ("runtime", "per_second")


class Notes(TrainerCallback):
    """Everything that a callback is told."""

    def __init__(self) -> None:
        self.heard: list = []

    def _hear(self, event, state, **more):
        self.heard.append((event, state.global_step, state.epoch, more))

    def on_train_begin(self, args, state, control, **kwargs):
        self._hear("train_begin", state, max_steps=state.max_steps)

    def on_step_end(self, args, state, control, **kwargs):
        self._hear("step_end", state)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        norms = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
        self._hear("pre_optimizer_step", state, norms=norms)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self._hear("evaluate", state, metrics=_untimed(metrics))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._hear("log", state, logs=_untimed(logs))

    def on_save(self, args, state, control, **kwargs):
        self._hear("save", state)

    def on_train_end(self, args, state, control, **kwargs):
        self._hear("train_end", state)


def _untimed(value):
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if not any(mark in k for mark in TIMED)}
    return [_untimed(v) for v in value] if isinstance(value, list) else value


def _lora():
    return get_peft_model(tiny.llama(), LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj"]))


def _dropout_bert():
    return tiny.bert()


RUNS = {
    "accumulated": (tiny.llama, {"gradient_accumulation_steps": 2}),
    "classifier": (_dropout_bert, {"gradient_accumulation_steps": 3, "lr_scheduler_type": "cosine", "warmup_steps": 2}),
    "peft": (_lora, {"gradient_accumulation_steps": 2}),
    "smoothed": (bert(), {"label_smoothing_factor": 0.1}),
    "best": (tiny.llama, {"load_best_model_at_end": True, "save_total_limit": 1}),
}


def _run(cls, out: Path, name: str):
    make, changes = RUNS[name]
    rows = text(lambda g, ids: ids[0] % 3)() if "bert" in make.__qualname__ else text(lambda g, ids: ids)()
    args = arguments(
        "out",  # the same name in different folders: it is written into the state
        per_device_train_batch_size=2,
        **{
            "num_train_epochs": 3,
            "optim": "adamw_torch",
            "max_grad_norm": 1.0,
            "save_strategy": "epoch",
            "eval_strategy": "epoch",
            **changes,
        },
    )
    notes = Notes()
    torch.manual_seed(0)
    model, data = make(), Rows(rows)
    trainer = cls(model, args, train_dataset=data, eval_dataset=data, data_collator=Pad(), callbacks=[notes])
    result = trainer.train()
    trainer.save_model("final")
    trainer.train(resume_from_checkpoint=str(sorted(Path("out").glob("checkpoint-*"))[0]))
    return trainer, notes.heard, result


@pytest.mark.parametrize("name", RUNS)
def test_without_stages_it_is_trainer(name, tmp_path, monkeypatch):
    made = {}
    for cls in (Trainer, StagedTrainer):
        (tmp_path / cls.__name__).mkdir()
        monkeypatch.chdir(tmp_path / cls.__name__)
        made[cls] = _run(cls, tmp_path / cls.__name__, name)
    (plain, heard, result), (ours, heard_too, result_too) = made[Trainer], made[StagedTrainer]
    assert result.training_loss == result_too.training_loss
    assert heard == heard_too
    assert len(heard) > 20
    assert _untimed(plain.state.log_history) == _untimed(ours.state.log_history)
    theirs, own = plain.model.state_dict(), ours.model.state_dict()
    assert theirs.keys() == own.keys()
    assert all(torch.equal(theirs[key], own[key]) for key in theirs)
    _same_files(tmp_path / "Trainer", tmp_path / "StagedTrainer")


def _same_files(a: Path, b: Path) -> None:
    files = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file())
    assert any(p.name == "trainer_state.json" for p in files)
    for path in files:
        if path.suffix == ".safetensors":
            one, two = load_file(a / path), load_file(b / path)
            assert one.keys() == two.keys()
            assert all(torch.equal(one[key], two[key]) for key in one), path
        elif path.name == "trainer_state.json":
            one, two = (json.loads((at / path).read_text(encoding="utf-8")) for at in (a, b))
            assert _untimed(one) == _untimed(two), path
        elif path.suffix == ".json":
            assert (a / path).read_bytes() == (b / path).read_bytes(), path
        elif path.name in ("optimizer.pt", "scheduler.pt"):
            one, two = (torch.load(at / path, weights_only=True) for at in (a, b))
            assert repr(one) == repr(two), path
