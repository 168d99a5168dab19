"""What compressing runs are asked for beside their stages: chains of teachers, and tasks of regression."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from hf_stages import Stage, StagedTrainer
from hf_stages.losses import HiddenMSE, LogitKL, LogitMSE
from hf_stages.recipes import multi_stage, single_stage
from hf_stages.transforms import Binarize, Ternarize
from tests import tiny

pytestmark = pytest.mark.usefixtures("quick_gc")


def trainer(out, model, stages, teacher=None, **data):
    args = TrainingArguments(
        str(out),
        learning_rate=1e-3,
        per_device_train_batch_size=8,
        logging_steps=1,
        save_strategy="no",
        optim="adamw_torch_fused",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    return StagedTrainer(model, args, stages=stages, teacher=teacher, **data)


class Teachers(TrainerCallback):
    """Who taught each update."""

    def __init__(self):
        self.run, self.seen = None, []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(self.run.stage_teacher)


def test_each_student_may_teach_the_next(tmp_path):
    """Full precision teaches the ternary model, which teaches the binary one (BiT); a taught model is not trained."""
    taught = {"loss": HiddenMSE() + LogitKL()}
    stages = [
        Stage("full", "2 steps"),
        Stage("ternary", "2 steps", transforms=[Ternarize()], teacher="stage:full", **taught),
        Stage("binary", "2 steps", transforms=[Binarize()], teacher="stage:ternary", **taught),
    ]
    run = trainer(tmp_path, tiny.bert(), stages, train_dataset=tiny.class_data())
    teachers = Teachers()
    run.add_callback(teachers)
    teachers.run = run
    run.train()
    saved = StagedTrainer.from_stage(tmp_path / "02-ternary").model
    used = teachers.seen[-1].model
    assert type(used.bert.pooler.dense).__name__ == "TernaryLinear"
    assert torch.equal(used.bert.pooler.dense.weight_latent, saved.bert.pooler.dense.weight_latent)
    assert type(run.model.bert.pooler.dense).__name__ == "BinaryLinear"


def scores(rows: int = 32):
    data = tiny.class_data(rows)
    return data.remove_columns("labels").add_column("labels", [row / rows for row in range(rows)])


@pytest.mark.parametrize("make", [multi_stage, single_stage])
def test_a_regression_learns_in_stages_of_logits(tmp_path, make):
    """A softmax over one output is 1 whatever it is (BinaryBERT's second stage on STS-B learns nothing)."""
    teacher, student = (tiny.bert(seed, num_labels=1, problem_type="regression") for seed in (0, 1))
    with pytest.raises(ValueError, match="use LogitMSE"):
        trainer(tmp_path, student, make("8 steps").stages, teacher, train_dataset=scores()).plan()
    run = trainer(tmp_path, student, make("8 steps", logits=LogitMSE()).stages, teacher, train_dataset=scores())
    run.train()
    last = run.recipe.stages[-1].name
    logged = [log for log in run.state.log_history if "loss" in log][-1]
    assert logged.get("loss_LogitMSE", logged["loss"]) > 0
    assert (tmp_path / run.plan()[last].folder).is_dir()
