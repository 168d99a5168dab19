"""Stages for Trainer's other subclasses: the mixin on Seq2SeqTrainer and on TRL's SFTTrainer."""

from __future__ import annotations

import json

import pytest
from transformers import PreTrainedTokenizerFast, Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_stages import Stage
from hf_stages.data.sample_text import byte_tokenizer
from hf_stages.schedules import Resume
from hf_stages.trainer import StagedMixin
from hf_stages.transforms import Freeze
from tests import tiny

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
