"""A staged run of a tiny model on the CPU, what its folders say, and parts that several tests give it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import (
    TrainerCallback,
    TrainingArguments,
)

from hf_stages import Stage, StagedTrainer
from hf_stages.losses import Loss
from tests.support import tiny


def staged(out: Path, stages: list[Stage], *, model=None, args: dict | None = None, **options) -> StagedTrainer:
    given = {"per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no"}
    given |= {"report_to": [], "disable_tqdm": True, "use_cpu": True, "optim": "adamw_torch_fused", **(args or {})}
    options.setdefault("train_dataset", tiny.lm_data())
    return StagedTrainer(model or tiny.llama(), TrainingArguments(str(out), **given), stages=stages, **options)


def summary(out: Path, folder: str) -> dict:
    return json.loads((out / folder / "stage.json").read_text())


def rates(trainer: StagedTrainer, stage: int | None = None) -> list[float]:
    logs = [log for log in trainer.state.log_history if "learning_rate" in log]
    return [log["learning_rate"] for log in logs if stage in (None, log["stage"])]


class StopAt(TrainerCallback):
    def __init__(self, at: int):
        self.at = at

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == self.at


@dataclass(frozen=True)
class Agree(Loss):
    """A loss that compares with a teacher: the squared distance of logits, over all tokens."""

    uses_teacher = True

    def items(self, batch):
        return batch["input_ids"].numel()

    def __call__(self, student, teacher, batch, t):
        return (student.logits - teacher.logits).pow(2).mean(-1).sum()
