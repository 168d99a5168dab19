"""Stages for Trainer's other subclasses: the mixin on Seq2SeqTrainer and on TRL's SFTTrainer."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainingArguments

from hf_stages import Stage
from hf_stages.data.sample_text import byte_tokenizer
from hf_stages.evaluation.evaluation_mixin import EvaluationMixin
from hf_stages.schedules import Resume
from hf_stages.training.trainer import StagedMixin, StagedTrainer
from hf_stages.transforms import Freeze
from tests.support import tiny

QUIET = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1}


class StagedSeq2SeqTrainer(StagedMixin, Seq2SeqTrainer):
    pass


def test_staged_seq2seq(tmp_path):
    data = tiny.lm_data(16)
    args = Seq2SeqTrainingArguments(
        str(tmp_path), predict_with_generate=True, per_device_train_batch_size=4, generation_max_length=6, **QUIET
    )
    trainer = StagedSeq2SeqTrainer(
        tiny.t5(),
        args,
        train_dataset=data,
        eval_dataset=data.select(range(4)),
        compute_metrics=lambda prediction: {"tokens": float(prediction.predictions.shape[1])},
        stages=[Stage("a", "3 steps"), Stage("b", "2 steps", transforms=[Freeze("encoder")], schedule=Resume())],
    )
    trainer.train()
    metrics = json.loads((tmp_path / "02-b" / "stage.json").read_text())["metrics"]
    assert metrics["eval_tokens"] > 1  # generated, not argmaxed: Seq2SeqTrainer's own evaluation ran
    assert trainer.state.global_step == 5
    frozen = {name for name, p in trainer.model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in trainer.model.named_parameters() if n.startswith(("encoder", "shared"))}  # tied


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("transformers", "Trainer"),
        ("transformers", "Seq2SeqTrainer"),
        ("trl", "SFTTrainer"),
        ("trl", "DPOTrainer"),
        ("trl", "RewardTrainer"),
    ],
)
def test_overrides_take_what_the_trainer_below_takes(module, name):
    below = getattr(pytest.importorskip(module), name)
    ours = {**vars(StagedMixin), **vars(EvaluationMixin)}
    common = [key for key, value in ours.items() if inspect.isfunction(value) and hasattr(below, key)]
    assert {"prediction_step", "evaluate", "train"} <= set(common)
    for key in common:
        theirs = list(inspect.signature(getattr(below, key)).parameters.values())
        own = inspect.signature(ours[key])
        kinds = {p.kind for p in own.parameters.values()}
        open_ends = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        assert {p.kind for p in theirs} & open_ends <= kinds, f"{key}: {own}"
        named = [p for p in theirs if p.kind not in open_ends]
        if not key.startswith("_"):  # those, Trainer alone calls, and by name
            own.bind(*[p for p in named if p.kind is not inspect.Parameter.KEYWORD_ONLY])
        own.bind(named[0], **{p.name: None for p in named[1:]})


def test_a_wider_hook_of_the_users_own(tmp_path):
    """A trainer below may take more than Trainer: what it is given arrives, with stages and without."""

    class Wide(transformers.Trainer):
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, *, noted=None):
            self.noted = noted
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

        def get_eval_dataloader(self, eval_dataset=None, noted=None):
            self.noted = noted
            return super().get_eval_dataloader(eval_dataset)

    class StagedWide(StagedMixin, Wide):
        pass

    data, args = tiny.class_data(4), transformers.TrainingArguments(str(tmp_path), **QUIET)
    for more in ({}, {"stages": [Stage("a", "1 steps")]}):
        trainer = StagedWide(tiny.bert(), args, train_dataset=data, eval_dataset=data, **more)
        batch = next(iter(trainer.get_eval_dataloader(data, noted="loader")))
        assert trainer.noted == "loader"
        trainer.prediction_step(trainer.model, batch, True, noted="step")
        assert trainer.noted == "step"


def test_generation_options(tmp_path):
    """Given to evaluate and predict as to a stock Seq2SeqTrainer, and to a prediction step alone."""
    data = tiny.lm_data(4)
    args = Seq2SeqTrainingArguments(str(tmp_path), predict_with_generate=True, **QUIET)
    options = {
        "train_dataset": data,
        "eval_dataset": data,
        "compute_metrics": lambda p: {"width": p.predictions.shape[1]},
    }
    stock = Seq2SeqTrainer(tiny.t5(), args, **options)
    staged = StagedSeq2SeqTrainer(tiny.t5(), args, **options, stages=[Stage("a", "1 steps")])
    for trainer in (stock, staged):
        metrics = trainer.evaluate(max_new_tokens=3, num_beams=2)
        assert metrics["eval_width"] == 20  # padded to the model's max_length, as stock does
        assert trainer.predict(data, max_new_tokens=3).predictions.shape == (4, 20)
        batch = next(iter(trainer.get_eval_dataloader()))
        loss, tokens, _ = trainer.prediction_step(trainer.model, batch, False, max_new_tokens=3)
        assert loss is not None
        assert (tokens != 0).sum(1).max() <= 3


def test_staged_sft(tmp_path):
    trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")

    class StagedSFTTrainer(StagedMixin, trl.SFTTrainer):
        def stage_dataset(self, dataset, stage):
            if "input_ids" in dataset.column_names:
                return dataset
            return self._prepare_dataset(dataset, self.processing_class, self.args, False, None, stage.name)

    from datasets import Dataset

    tokenizer: PreTrainedTokenizerFast = byte_tokenizer()
    prose = Dataset.from_dict({"text": ["a stage is a stretch of training"] * 16})
    talk = Dataset.from_dict({"prompt": ["two and two?"] * 16, "completion": [" four"] * 16})
    args = trl.SFTConfig(str(tmp_path), per_device_train_batch_size=4, max_length=48, **QUIET)
    trainer = StagedSFTTrainer(
        tiny.llama(vocab_size=len(tokenizer)),
        args,
        train_dataset=prose,
        processing_class=tokenizer,
        stages=[Stage("prose", "3 steps"), Stage("talk", "3 steps", train_dataset=talk)],
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["stage"] for log in logs] == [1, 1, 1, 2, 2, 2]
    assert all(log["loss"] > 0 for log in logs)
    assert "mean_token_accuracy" in logs[0]  # SFTTrainer's own compute_loss ran
    assert (tmp_path / "02-talk" / "model.safetensors").is_file()


class NamesOfItsOwn(StagedTrainer):
    """Has names that a user may well choose."""

    def __init__(self, *args, **kwargs):
        self.own_settings, self.run_plan, self.split_batch = {"a": 1}, "mine", 3
        super().__init__(*args, **kwargs)

    def _set_up(self):
        raise AssertionError("nobody else calls this")

    set_teacher = batch_of = forget_batch = take_initial_model = _check_setup = _set_up


def test_a_subclass_may_have_names_of_its_own(tmp_path):
    ends = []
    for kind in (StagedTrainer, NamesOfItsOwn):
        args = TrainingArguments(str(tmp_path / kind.__name__), per_device_train_batch_size=4, **QUIET)
        data = tiny.lm_data(16)
        stages = [Stage("a", "2 steps"), Stage("b", "1 steps", eval_dataset={"x": data.select(range(4))})]
        trainer = kind(tiny.llama(), args, train_dataset=data, stages=stages)
        trainer.train()
        ends.append(trainer.model.state_dict())
    assert (trainer.own_settings, trainer.run_plan, trainer.split_batch) == ({"a": 1}, "mine", 3)
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
